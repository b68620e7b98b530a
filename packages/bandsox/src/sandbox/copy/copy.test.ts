/** Copies both ways through the agent's own binary, which serves on this host: what goes in can be looked at directly. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  chmod,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import type { Agent } from '../../guest/agent.js'
import { hasCode } from '../../testing/errors.js'
import { seededRandom } from '../../testing/random.js'
import { realAgent } from '../../testing/real-agent.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { copyIn, tarIn } from './copy-in.js'
import { copyOut, tarOut } from './copy-out.js'

const isRoot = process.getuid?.() === 0
const HUGE = 64 * 1024 ** 3

/** A tree with all that a copy has to keep. */
async function nastyTree(folder: string): Promise<void> {
  const content = seededRandom(7).bytes(700_000)
  await mkdir(path.join(folder, 'deep/er/still'), { recursive: true })
  await mkdir(path.join(folder, 'empty'))
  await writeFile(path.join(folder, 'deep/er/file'), content)
  await writeFile(path.join(folder, 'nothing'), '')
  await writeFile(path.join(folder, 'x'.repeat(255)), 'long name')
  const long = path.join(folder, ...Array.from({ length: 8 }, (_, index) => `${index}${'y'.repeat(120)}`))
  await mkdir(long, { recursive: true })
  await writeFile(path.join(long, 'ümläut 😀'), 'long path')
  const odd = Buffer.concat([Buffer.from(`${folder}/odd-`), Buffer.from([0xff, 0xfe])])
  await writeFile(odd, 'not UTF-8')
  await writeFile(path.join(folder, 'new\nline "quoted" \\'), 'odd')
  await link(path.join(folder, 'deep/er/file'), path.join(folder, 'second name'))
  await symlink('/etc/passwd', path.join(folder, 'to somewhere'))
  await symlink('z'.repeat(300), path.join(folder, 'to a long target'))
  execFileSync('mkfifo', [path.join(folder, 'fifo')])
  await chmod(path.join(folder, 'nothing'), 0o640)
  const sparse = await open(path.join(folder, 'sparse'), 'w')
  await sparse.write('here', 5_000_000)
  await sparse.write('there', 20 * 1024 ** 3)
  await sparse.truncate(HUGE)
  await sparse.close()
  const hole = await open(path.join(folder, 'hole'), 'w')
  await hole.truncate(3_000_000)
  await hole.close()
  await utimes(path.join(folder, 'deep/er/file'), 1, 1_000_000_000.25)
  await utimes(path.join(folder, 'nothing'), 1, '-86400.5')
  await chmod(path.join(folder, 'deep/er/still'), 0o555)
  await utimes(path.join(folder, 'deep/er'), 1, 123_456_789)
  await utimes(path.join(folder, 'empty'), 1, 4_000_000_000)
}

/** What `find` and `sha256sum` say of a tree: other people's eyes. */
function described(folder: string): string[] {
  const list = execFileSync('find', ['.', '-printf', '%P\t%y\t%m\t%U:%G\t%s\t%n\t%l\t%Ts\\0'], { cwd: folder })
  const files = list
    .toString('latin1')
    .split('\0')
    .filter((line) => line !== '')
  return files
    .map((line) => {
      const fields = line.split('\t')
      if (fields[1] === 'd') fields[4] = fields[5] = '' // of a folder they are the file system's
      return fields.join('\t')
    })
    .sort()
}

async function scratch(t: TestScope): Promise<{ agent: Agent; find: () => Promise<Agent>; folder: string }> {
  const agent = await realAgent(t)
  return { agent, find: async () => agent, folder: await temporaryFolder(t) }
}

/** Names of our own that something has left. */
function leftIn(folder: string): string {
  return execFileSync('find', [folder, '-name', '*bandsox-copy*'], { encoding: 'utf8' })
}

describe('a copy', () => {
  it('keeps a tree as it is, there and back', { timeout: 120_000 }, async (t) => {
    const { find, folder } = await scratch(t)
    const [source, there, back] = ['source', 'there', 'back'].map((name) => path.join(folder, name)) as [
      string,
      string,
      string,
    ]
    await mkdir(source)
    // As large as it says, the file would be read for minutes.
    await nastyTree(source)
    execFileSync('truncate', ['-s', '300M', path.join(source, 'sparse')])
    await writeFile(path.join(source, 'set-id'), 'x')
    await chmod(path.join(source, 'set-id'), 0o4755)
    const isIn = await copyIn(find, source, there, {})
    assert.deepEqual(described(there), described(source))
    assert.deepEqual([isIn.skippedCount, isIn.skipped], [0, []])
    const files = execFileSync('find', [source, '-type', 'f'], { encoding: 'utf8' }).trim().split(`\n${source}`).length
    assert.equal(isIn.files, files - 1)
    assert.equal(isIn.links, 3)
    const out = await copyOut(find, there, back, {})
    await chmod(path.join(source, 'set-id'), 0o755) // of a guest's file it is dropped
    assert.deepEqual(described(back), described(source))
    assert.deepEqual([out.files, out.folders, out.links, out.bytes], [isIn.files, isIn.folders, isIn.links, isIn.bytes])
    for (const tree of [there, back]) {
      assert.ok((await readFile(path.join(tree, 'second name'))).equals(seededRandom(7).bytes(700_000)))
      const { blocks } = await lstat(path.join(tree, 'sparse'))
      assert.ok(blocks * 512 < 100_000, `the holes are gone: ${blocks} blocks`)
      execFileSync('cmp', [path.join(source, 'sparse'), path.join(tree, 'sparse')])
      assert.equal((await lstat(path.join(tree, 'deep/er/file'))).mtimeMs, 1_000_000_000_250)
      assert.equal(await readlink(path.join(tree, 'to a long target')), 'z'.repeat(300))
    }
    assert.equal(leftIn(folder), '')
  })

  it('goes where cp -r and docker cp would have it', async (t) => {
    const { find, folder } = await scratch(t)
    for (const [way, copy] of [
      ['in', copyIn],
      ['out', copyOut],
    ] as const) {
      const at = (name: string) => path.join(folder, way, name)
      await mkdir(at('source'), { recursive: true })
      await writeFile(at('source/file'), 'new')
      await mkdir(at('folder'))
      await copy(find, at('source'), at('fresh'), {})
      assert.deepEqual(await readdir(at('fresh')), ['file'])
      await copy(find, at('source'), at('folder'), {})
      assert.deepEqual(await readdir(at('folder/source')), ['file'])
      await copy(find, `${at('source')}/.`, at('folder'), {})
      assert.deepEqual((await readdir(at('folder'))).sort(), ['file', 'source'])
      await copy(find, at('source/file'), at('folder/renamed'), {})
      await copy(find, at('source/file'), `${at('fresh')}/`, {})
      await writeFile(at('folder/file'), 'old')
      await copy(find, at('source/file'), at('folder'), {})
      assert.equal(await readFile(at('folder/file'), 'utf8'), 'new')
      assert.equal(await readFile(at('folder/renamed'), 'utf8'), 'new')
      for (const [source, target, code] of [
        [at('source'), at('folder/file'), 'file-error'],
        [at('source/file'), `${at('none')}/`, 'file-not-found'],
        [at('source/file'), at('none/deeper'), 'file-not-found'],
        [at('source'), at('none/deeper'), 'file-not-found'],
        [at('none'), at('folder'), 'file-not-found'],
        [`${at('source/file')}/.`, at('folder'), 'file-error'],
        [`${at('source/file')}`, `${at('folder/file')}/`, 'file-error'],
      ] as const)
        await assert.rejects(copy(find, source, target, {}), hasCode(code), `${way}: ${source} to ${target}`)
      assert.equal(leftIn(folder), '')
    }
  })

  it('into a folder that is there adds to it, and refuses what is in the way before it changes anything', async (t) => {
    const { find, folder } = await scratch(t)
    for (const [way, copy] of [
      ['in', copyIn],
      ['out', copyOut],
    ] as const) {
      const at = (name: string) => path.join(folder, way, name)
      for (const each of ['source/tree/sub', 'to/tree/sub']) await mkdir(at(each), { recursive: true })
      await writeFile(at('source/tree/new'), 'new')
      await writeFile(at('source/tree/sub/same'), 'new')
      await writeFile(at('to/tree/kept'), 'kept')
      await writeFile(at('to/tree/sub/same'), 'old')
      await chmod(at('to/tree/sub'), 0o700)
      const outside = path.join(folder, 'outside')
      await writeFile(outside, 'untouched')
      await symlink(outside, at('to/tree/new'))
      await copy(find, at('source/tree'), at('to'), {})
      assert.equal(await readFile(at('to/tree/sub/same'), 'utf8'), 'new')
      assert.equal(await readFile(at('to/tree/kept'), 'utf8'), 'kept')
      assert.equal(await readFile(at('to/tree/new'), 'utf8'), 'new')
      assert.equal(await readFile(outside, 'utf8'), 'untouched')
      assert.equal((await lstat(at('to/tree/sub'))).mode & 0o777, 0o700)
      // A link that leads out, where the copy has a folder.
      await mkdir(at('source/tree/zz'))
      await writeFile(at('source/tree/zz/escaped'), 'x')
      await writeFile(at('source/tree/new'), 'newer')
      await symlink(folder, at('to/tree/zz'))
      await assert.rejects(copy(find, at('source/tree'), at('to'), {}), hasCode('file-error', /zz/))
      assert.equal(await readFile(at('to/tree/new'), 'utf8'), 'new')
      assert.equal((await readdir(folder)).includes('escaped'), false)
      assert.equal(leftIn(folder), '')
    }
  })

  it('chooses by patterns, on both ways alike', async (t) => {
    const { find, folder } = await scratch(t)
    const source = path.join(folder, 'source')
    for (const each of ['src/deep', 'docs', 'node_modules/x']) await mkdir(path.join(source, each), { recursive: true })
    for (const each of ['src/a.py', 'src/b.txt', 'src/deep/c.py', 'docs/x.md', 'node_modules/x/d.py', 'top.py'])
      await writeFile(path.join(source, each), each)
    const options = { include: ['*.py'], exclude: ['node_modules/'] }
    for (const [name, copy] of [
      ['in', copyIn],
      ['out', copyOut],
    ] as const) {
      const result = await copy(find, source, path.join(folder, name), options)
      const found = execFileSync('find', ['.', '-type', 'f'], { cwd: path.join(folder, name), encoding: 'utf8' })
      assert.deepEqual(found.trim().split('\n').sort(), ['./src/a.py', './src/deep/c.py', './top.py'])
      assert.deepEqual([result.files, result.folders], [3, 3])
      await assert.rejects(
        copy(find, source, path.join(folder, 'no'), { exclude: ['['] }),
        hasCode('bad-request', /\[/),
      )
    }
  })

  it('leaves nothing when it is aborted, or its source fails', async (t) => {
    const { find, folder } = await scratch(t)
    const source = path.join(folder, 'source')
    await mkdir(source)
    for (let index = 0; index < 30; index++)
      await writeFile(path.join(source, `f${index}`), Buffer.alloc(1_000_000, index + 1))
    for (const [name, copy] of [
      ['in', copyIn],
      ['out', copyOut],
    ] as const) {
      const controller = new AbortController()
      const onProgress = ({ bytes }: { bytes: number }) => {
        if (bytes > 2_000_000) controller.abort(new Error('enough'))
      }
      await assert.rejects(
        copy(find, source, path.join(folder, name), { signal: controller.signal, onProgress }),
        /enough/,
      )
      assert.deepEqual(await readdir(folder), ['source'])
    }
  })

  it('is a tar for other programs', async (t) => {
    const { find, folder } = await scratch(t)
    const source = path.join(folder, 'source')
    await mkdir(source)
    await nastyTree(source)
    execFileSync('truncate', ['-s', '100M', path.join(source, 'sparse')])
    const parts: Uint8Array[] = []
    await tarOut(find, source, async (data) => void parts.push(Uint8Array.from(data)), {})
    await mkdir(path.join(folder, 'by-tar'))
    execFileSync('tar', ['-x', '-p', '-C', path.join(folder, 'by-tar')], { input: Buffer.concat(parts) })
    assert.deepEqual(described(path.join(folder, 'by-tar/source')), described(source))
    for (const format of ['gnu', 'posix']) {
      const tar = execFileSync('tar', [`--format=${format}`, '-S', '-c', '-C', folder, 'source'], {
        maxBuffer: 1 << 28,
      })
      const into = path.join(folder, format)
      await mkdir(into)
      await tarIn(
        find,
        (async function* () {
          yield tar
        })(),
        into,
        {},
      )
      assert.deepEqual(described(path.join(into, 'source')), described(source), format)
    }
    await assert.rejects(
      tarIn(
        find,
        (async function* () {
          yield Buffer.from('no tar at all'.repeat(100))
        })(),
        folder,
        {},
      ),
      hasCode('bad-request', /not a good tar stream/),
    )
    assert.equal(leftIn(folder), '')
  })

  it('takes devices into the guest, and names those that it leaves out of the host', {
    skip: isRoot ? false : 'devices are for root',
  }, async (t) => {
    const { find, folder } = await scratch(t)
    const source = path.join(folder, 'source')
    await mkdir(source)
    execFileSync('mknod', [path.join(source, 'null'), 'c', '1', '3'])
    const isIn = await copyIn(find, source, path.join(folder, 'in'), {})
    assert.equal(isIn.skippedCount, 0)
    const made = await lstat(path.join(folder, 'in/null'))
    assert.ok(made.isCharacterDevice())
    assert.equal(made.rdev, (await lstat('/dev/null')).rdev)
    const out = await copyOut(find, source, path.join(folder, 'out'), {})
    assert.deepEqual(out.skipped, [{ path: 'null', reason: 'a device' }])
    assert.deepEqual(await readdir(path.join(folder, 'out')), [])
  })
})
