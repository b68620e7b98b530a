/**
 * What the earlier project promised its users about vsock, by the subjects of its report's tests. Those of the allocators are in
 * store/numbers.test.ts; the link itself is the agent on this machine, and real.
 */
import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import type { Agent } from '../guest/agent.js'
import { cuttableGuest } from '../guest/testing/cuttable-guest.js'
import { hasCode } from '../testing/errors.js'
import { seededRandom } from '../testing/random.js'
import { LocalFiles } from './local-files.js'

const HELLO_WORLD = 'Hello, world!'
/** md5sum(1) of it, as the report has it. */
const HELLO_WORLD_MD5 = '6cd3556deb0da54bca060b4c39479839'

const filesOf = (agent: Agent, log: (text: string) => void = () => undefined) => new LocalFiles(async () => agent, log)

describe('file transfer', () => {
  it('computes the checksum of an upload', async (t) => {
    const { agent, folder } = await cuttableGuest(t)
    const { checksum } = await filesOf(agent).write(path.join(folder, 'hello'), HELLO_WORLD, { checksum: 'md5' })
    assert.deepEqual(checksum, { algorithm: 'md5', value: HELLO_WORLD_MD5 })
    assert.equal(await readFile(path.join(folder, 'hello'), 'utf8'), HELLO_WORLD)
  })

  it('writes a download to the disk', async (t) => {
    const { agent, folder } = await cuttableGuest(t)
    const bytes = seededRandom(9).bytes(300_000)
    await writeFile(path.join(folder, 'there'), bytes)
    const result = await filesOf(agent).download(path.join(folder, 'there'), path.join(folder, 'here'))
    assert.equal(result.path, path.join(folder, 'here'))
    assert.ok((await readFile(result.path)).equals(bytes))
  })

  it('says over which link, in the result and in the log', async (t) => {
    const { agent, folder, vsock } = await cuttableGuest(t)
    const told: string[] = []
    const files = filesOf(agent, (text) => void told.push(text))
    const file = path.join(folder, 'f')
    assert.equal((await files.write(file, 'abc')).link, 'vsock')
    assert.equal((await files.download(file, path.join(folder, 'g'))).link, 'vsock')
    vsock.refuse(true)
    assert.equal((await files.write(file, 'abc')).link, 'serial')
    assert.equal((await files.download(file, path.join(folder, 'g'))).link, 'serial')
    assert.deepEqual(told, [
      `File uploaded via vsock: ${file} (3 bytes)`,
      `File downloaded via vsock: ${file} (3 bytes)`,
      `File uploaded via agent: ${file} (3 bytes)`,
      `File downloaded via agent: ${file} (3 bytes)`,
    ])
  })
})

describe('performance', () => {
  it('knows the size of a file before its content', async (t) => {
    const { agent, folder } = await cuttableGuest(t)
    await writeFile(path.join(folder, 'f'), Buffer.alloc(1_234_567))
    await assert.rejects(
      filesOf(agent).read(path.join(folder, 'f'), { maxBytes: 1_234_566 }),
      hasCode('output-too-large', /1234567 bytes/),
    )
    assert.equal((await filesOf(agent).read(path.join(folder, 'f'), { maxBytes: 1_234_567 })).length, 1_234_567)
  })

  it('moves files in chunks of 65,536 bytes', async (t) => {
    const { agent, folder } = await cuttableGuest(t)
    await agent.use(async (connection) => {
      connection.send({ type: 'upload', path: path.join(folder, 'f'), checksum: 'md5' })
      assert.equal((await connection.receiveMessage('ready')).chunkBytes, 65_536)
      connection.send({ type: 'abort' })
      await assert.rejects(connection.receiveMessage('complete'), hasCode('cancelled'))
    })
  })

  it('has the MD5 that everybody has', async (t) => {
    const { agent, folder } = await cuttableGuest(t)
    await writeFile(path.join(folder, 'hello'), HELLO_WORLD)
    const result = await filesOf(agent).download(path.join(folder, 'hello'), path.join(folder, 'copy'), {
      checksum: 'md5',
    })
    assert.equal(result.checksum.value, HELLO_WORLD_MD5)
  })
})

describe('documentation', () => {
  const inDocs = (name: string) => readFile(fileURLToPath(new URL(`../../../../docs/${name}`, import.meta.url)), 'utf8')
  const sectionsOf = (text: string) => [...text.matchAll(/^## (.+)$/gm)].map(([, title]) => title)

  it('has a migration guide, which README names', async () => {
    const readme = await readFile(fileURLToPath(new URL('../../../../README.md', import.meta.url)), 'utf8')
    assert.match(readme, /\(docs\/migration\.md\)/)
    assert.match(readme, /\(docs\/vsock\.md\)/)
  })

  it('whose sections are those that users were told of', async () => {
    assert.deepEqual(sectionsOf(await inDocs('migration.md')), [
      'Overview',
      'Breaking Changes',
      'Migration Steps',
      'Technical Details',
      'Troubleshooting',
      'Performance Expectations',
    ])
  })

  it('explains vsock from its architecture to its symptoms', async () => {
    const sections = sectionsOf(await inDocs('vsock.md'))
    for (const wanted of ['Architecture', 'Protocol', 'The ladder', 'Performance', 'Troubleshooting'])
      assert.ok(sections.includes(wanted), `docs/vsock.md has no section ${wanted}`)
  })
})
