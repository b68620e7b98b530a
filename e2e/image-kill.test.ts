/** Pulls that are killed at any moment, and pulls of several processes at once: what is there is whole, and nothing is left over. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { type TestContext, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { openBandSox } from 'bandsox'
import { digestFile } from 'bandsox/internal/artifact/recorded-file.js'
import { cli, startCli } from './support/command-line.js'
import { publishedImage, push, testImagesFolder } from './support/published-images.js'
import { randomBytes } from './support/random.js'
import { startRegistry } from './support/registry.js'
import { boundedOrFull } from './support/scale.js'
import { temporaryStorage } from './support/storage.js'
import { missingTools } from './support/test-tools.js'

const skip = missingTools()
const KILLS = boundedOrFull(8, 50)
const SEED = 20_261_124

/** Names below the folder of images, by their kind. */
async function namesByKind(storage: string): Promise<Record<string, string[]>> {
  const images = path.join(storage, 'images')
  const found: Record<string, string[]> = {}
  for (const kind of await readdir(images)) found[kind] = (await readdir(path.join(images, kind))).sort()
  return found
}

/** Whatever has a digest for its name has that digest, and a disk that has its name is the one that its manifest tells of. */
async function assertAllWhole(storage: string): Promise<void> {
  const { blobs = [], disks = [] } = await namesByKind(storage)
  for (const name of blobs.filter((each) => !each.startsWith('.'))) {
    assert.equal(await digestFile(path.join(storage, 'images/blobs', name)), name)
  }
  for (const name of disks.filter((each) => !each.startsWith('.'))) {
    const folder = path.join(storage, 'images/disks', name)
    const { rootfs } = JSON.parse(await readFile(path.join(folder, 'disk.json'), 'utf8')) as {
      rootfs: { file: string; sha256: string }
    }
    assert.equal(await digestFile(path.join(folder, rootfs.file)), rootfs.sha256)
  }
}

/** Debian's image has a device node, which an image has only by permission. */
async function configurationWithDevices(t: TestContext): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'bandsox-config-'))
  t.after(() => rm(folder, { recursive: true }))
  const file = path.join(folder, 'config.json')
  await writeFile(file, JSON.stringify({ images: { limits: { allowDevices: true } } }))
  return file
}

test(`a pull that is killed at ${KILLS} random moments leaves only what the next one goes on with`, {
  skip,
}, async (t) => {
  await using storage = await temporaryStorage()
  await using registry = await startRegistry()
  const reference = await push(await publishedImage('debian-python', testImagesFolder), registry)
  const { folder } = storage
  process.env['BANDSOX_CONFIG'] = await configurationWithDevices(t)
  assert.equal((await cli(folder, ['image', 'prune'])).status, 0) // of what the prepared storage had before it was made anew
  const before = await namesByKind(folder)
  const pull = () => startCli(folder, ['image', 'pull', reference])
  const ended = async (child: ReturnType<typeof startCli>) => {
    child.stdout?.resume()
    child.stderr?.resume()
    return (await once(child, 'close')) as [number | null, string | null]
  }

  const startedAt = performance.now()
  assert.deepEqual(await ended(pull()), [0, null])
  const wholeMs = performance.now() - startedAt
  assert.equal((await cli(folder, ['image', 'remove', reference])).status, 0)
  assert.deepEqual(await namesByKind(folder), before)

  const random = randomBytes(KILLS * 4, SEED)
  let killed = 0
  for (let round = 0; round < KILLS; round++) {
    const child = pull()
    const end = ended(child)
    // One in each part of it, short and long ones by turns: of those in its last part none may be killed.
    const moment = (((round * 3) % KILLS) + random.readUInt32LE(round * 4) / 2 ** 32) / KILLS
    await delay(moment * wholeMs)
    child.kill('SIGKILL')
    const [status] = await end
    if (status === null) killed++
    await assertAllWhole(folder)
    const listed = await cli(folder, ['image', 'list', '--json'])
    assert.equal(listed.status, 0, listed.stderr)
    // Every other round begins anew; the others go on with what the killed ones have left.
    if (listed.stdout.includes(reference)) await cli(folder, ['image', 'remove', '--force', reference])
    else if (round % 4 === 3) await cli(folder, ['image', 'prune'])
  }
  assert.ok(killed > KILLS / 3, `only ${killed} of ${KILLS} pulls were killed before their end`)

  const last = await cli(folder, ['image', 'pull', reference])
  assert.equal(last.status, 0, last.stderr)
  const run = await cli(folder, ['run', '--mem', '512', reference])
  assert.equal(run.status, 0, run.stderr)
  assert.match(run.stdout, /^greeting=hello = from the image$/m)
  assert.equal((await cli(folder, ['image', 'prune'])).status, 0)
  const after = await namesByKind(folder)
  assert.equal(after['blobs']?.length, (before['blobs']?.length ?? 0) + 7) // manifest, configuration, five layers
  assert.equal(after['disks']?.length, (before['disks']?.length ?? 0) + 1)
  assert.deepEqual({ partial: after['partial'], locks: after['locks'] }, { partial: [], locks: [] })
  assert.equal((await cli(folder, ['image', 'remove', reference])).status, 0)
  assert.deepEqual(await namesByKind(folder), before)
  await storage.assertNothingLeft()
})

test('processes that pull the same image at once fetch it once, and all of them have it', { skip }, async (t) => {
  await using storage = await temporaryStorage()
  await using registry = await startRegistry()
  const reference = await push(await publishedImage('debian-python', testImagesFolder), registry)
  process.env['BANDSOX_CONFIG'] = await configurationWithDevices(t)
  const results = await Promise.all(
    Array.from({ length: 3 }, () => cli(storage.folder, ['image', 'pull', reference, '--json'])),
  )
  const downloads = results.flatMap(({ status, stdout, stderr }) => {
    assert.equal(status, 0, stderr)
    const events = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as { kind: string; phase?: string })
    assert.equal(events.at(-1)?.kind, 'image')
    return events.filter(({ kind, phase }) => kind === 'layer' && phase === 'ready')
  })
  assert.equal(downloads.length, 5)
  const bandsox = await openBandSox({ storage: storage.folder })
  assert.equal((await bandsox.images.get(reference)).layers.length, 5)
  await storage.assertNothingLeft()
})
