/** `image commit`: what a sandbox has changed becomes a layer that others unpack to the same tree, and nothing is left over. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { type BandSox, type ImageEvent, openBandSox, type Sandbox } from 'bandsox'
import { digestFile } from 'bandsox/internal/artifact/recorded-file.js'
import { cli, startCli } from './support/command-line.js'
import { layerOf, namesOfImages } from './support/image-files.js'
import { publishedImage, testImagesFolder } from './support/published-images.js'
import { randomBytes } from './support/random.js'
import { boundedOrFull } from './support/scale.js'
import { namesIn, processesIn, type TestStorage, temporaryStorage, until, VMM_PROGRAM } from './support/storage.js'
import { missingTools, runTool } from './support/test-tools.js'
import { differences, digestTree, parseTreeDigest, type TreeEntry, treeDigestProgram } from './support/tree-digest.js'
import { addLayer, type ImageLayout, umociUnpack } from './support/umoci.js'

const skip = missingTools()
const KILLS = boundedOrFull(2, 40)
const SEED = 20_270_103
const SOURCE = 'docker.io/test/source:1'
const IN_MEMORY = '/dev/shm/tree-digest'
/** What is mounted over, and what is one machine's own. */
const OF_THE_MACHINE = ['dev', 'proc', 'sys', 'etc/hostname', 'etc/hosts', 'etc/machine-id', 'run']

/** In the image. */
const IMAGE = `
mkdir -p data/kept data/folder-gone/deep data/replaced data/moved/deep data/a data/b data/hard data/owned
echo kept > data/kept/file; echo gone > data/kept/gone; echo deep > data/folder-gone/deep/file
echo old > data/replaced/old; echo inner > data/moved/deep/inner; ln data/moved/deep/inner data/moved/other
echo a > data/a/of-a; echo b > data/b/of-b; echo one > data/hard/one; ln data/hard/one data/hard/two
echo owned > data/owned/file; mkdir data/was-folder; echo x > data/was-folder/x; echo x > data/was-file
ln -s kept data/link; echo x > data/capable; setcap cap_net_raw+ep data/capable
setfattr -n user.note -v 'a b' data/kept/file; setfattr -n trusted.note -v x data/moved
`

/** What the sandbox does to it. */
const CHANGES = `set -e
cd /data
echo more >> kept/file; rm kept/gone; rm -r folder-gone
rm -r replaced; mkdir replaced; echo new > replaced/new
mv moved elsewhere; echo added > elsewhere/deep/added
rm -r b; mv a b
echo more >> hard/one
chmod 0700 capable; chown 3000000:7 owned/file; chmod 4755 owned/file; chmod 2770 owned
rm -r was-folder; echo file > was-folder; rm was-file; mkdir was-file; echo x > was-file/x
rm link; ln -s /nowhere link
mkdir /work; cd /work
echo new > new; ln new same; mkfifo fifo; mknod null c 1 3
truncate -s 20000000 sparse; echo end >> sparse
touch "$(printf 'odd \\377 name')"; touch "$(printf '%0200d' 7)"
mkdir -p "$(printf '%0100d/%0100d' 1 2)/deep"; echo x > "$(printf '%0100d/%0100d' 1 2)/deep/file"
touch .wh.odd; mknod disk b 8 1
echo '10.0.0.1 database' >> /etc/issue
chmod 0751 /
`
/** Of these an image tells nothing. */
const NOT_IN_A_LAYER = ['work/.wh.odd', 'work/disk']
/** A file that has several names in the image, and was changed by one: how many it has since then is not the same in both. */
const OF_SEVERAL_NAMES = ['data/hard']

let folder: string
let source: ImageLayout
before(async () => {
  if (skip !== false) return
  folder = await mkdtemp(path.join(tmpdir(), 'bandsox-commit-'))
  const busybox = await publishedImage('busybox', testImagesFolder)
  source = { layout: path.join(folder, 'layout'), tag: busybox.tag }
  await cp(busybox.layout, source.layout, { recursive: true })
  const bundle = path.join(folder, 'bundle')
  await runTool(['sh', '-c', `cd "$1" && umask 022 && ${IMAGE}`, 'sh', await umociUnpack(source, bundle)])
  await addLayer(source, bundle, 'a tree to change')
})
after(async () => {
  if (skip === false) await rm(folder, { recursive: true })
})

async function open(storage: TestStorage): Promise<BandSox> {
  const bandsox = await openBandSox({ storage: storage.folder })
  await bandsox.images.import(source.layout, { reference: SOURCE })
  await bandsox.images.prune() // the storage that was prepared may have a disk of an earlier format
  return bandsox
}

async function treeInGuest(sandbox: Sandbox): Promise<TreeEntry[]> {
  await sandbox.files.upload(treeDigestProgram, IN_MEMORY, { mode: 0o755 })
  const options = [...OF_THE_MACHINE, ...NOT_IN_A_LAYER, ...OF_SEVERAL_NAMES].flatMap((each) => ['-skip', each])
  const { stdout, stderr, exitCode } = await sandbox.exec([IN_MEMORY, '-root', '/', '-x', ...options]).collect()
  assert.equal(exitCode, 0, stderr)
  return parseTreeDigest(stdout)
}

const diskOf = ({ folder: storage }: TestStorage, { id }: Sandbox) => path.join(storage, 'vms', id, 'overlay.ext4')

async function sh(sandbox: Sandbox, script: string): Promise<string> {
  const { stdout, stderr, exitCode } = await sandbox.exec(['sh', '-c', script]).collect()
  assert.equal(exitCode, 0, stderr)
  return stdout
}

test('an image of what a sandbox has changed boots to the same tree, and umoci unpacks it to that, too', {
  skip,
}, async () => {
  await using storage = await temporaryStorage()
  const bandsox = await open(storage)
  const sandbox = await bandsox.create(SOURCE, { diskMib: 128 }) // it is read whole, twice
  await sh(sandbox, CHANGES)
  const expected = await treeInGuest(sandbox)
  const severalNames = await sh(sandbox, 'head /data/hard/*')
  await sandbox.stop()
  const disk = await digestFile(diskOf(storage, sandbox))

  const events: ImageEvent[] = []
  const { image, changed } = await bandsox.images.commit(sandbox.id, 'test/committed', {
    message: 'a test',
    author: 'somebody',
    env: { ADDED: 'a=b', PATH: '/bin:/usr/bin' },
    cmd: ['cat', '/work/new'],
    workingDir: '/work',
    onEvent: (event) => void events.push(event),
  })
  assert.equal(changed, true)
  assert.equal(await digestFile(diskOf(storage, sandbox)), disk, 'the disk of the sandbox was changed')
  assert.equal((await sandbox.info()).state.kind, 'stopped')
  const base = await bandsox.images.get(SOURCE)
  assert.deepEqual(image.references, ['docker.io/test/committed:latest'])
  assert.deepEqual(image.layers.slice(0, -1), base.layers)
  assert.equal(image.layers.length, base.layers.length + 1)
  assert.deepEqual(image.config.cmd, ['cat', '/work/new'])
  assert.deepEqual(image.config.env, ['PATH=/bin:/usr/bin', 'ADDED=a=b'])
  const warnings = events.flatMap((event) => (event.kind === 'warning' ? [event.message] : []))
  assert.deepEqual(
    warnings.map((warning) => warning.split(' ')[0]),
    ['/work/.wh.odd', '/work/disk'],
  )

  const copy = await bandsox.create('test/committed', { pull: 'never' })
  assert.deepEqual(differences(expected, await treeInGuest(copy)), [])
  assert.equal(await sh(copy, 'head /data/hard/*'), severalNames)
  assert.equal((await copy.run().collect()).stdout, 'new\n')
  assert.equal(await sh(copy, 'tail -c 4 /work/sparse; pwd; echo $ADDED'), 'end\n/work\na=b\n')
  assert.ok(Number(await sh(copy, 'du -k /work/sparse | cut -f1')) < 100, 'the holes of a sparse file were filled')
  await copy.delete({ force: true })

  const exported = { layout: path.join(folder, 'exported'), tag: 'docker.io/test/committed:latest' }
  await bandsox.images.export('test/committed', exported.layout)
  // umoci takes no name with a colon for a tag.
  const index = path.join(exported.layout, 'index.json')
  await writeFile(index, (await readFile(index, 'utf8')).replace(exported.tag, 'committed'))
  const rootfs = await umociUnpack({ layout: exported.layout, tag: 'committed' }, path.join(folder, 'unpacked'))
  const unpacked = await digestTree(rootfs, { skip: [...OF_THE_MACHINE, ...OF_SEVERAL_NAMES] })
  assert.deepEqual(differences(expected, unpacked), [])
  const history = JSON.parse(await runTool(['umoci', 'stat', '--json', '--image', `${exported.layout}:committed`]))
  const { author, comment, created_by: createdBy } = history.history.at(-1)
  assert.deepEqual(
    { author, comment, createdBy },
    { author: 'somebody', comment: 'a test', createdBy: 'bandsox image commit' },
  )

  // What was committed can be changed, and committed, once more; the name goes over, as a tag's does.
  const second = await bandsox.create('test/committed', { pull: 'never' })
  await sh(second, 'rm -r /data')
  await second.stop()
  const next = await bandsox.images.commit(second.id, 'test/committed')
  assert.notEqual(next.image.id, image.id)
  assert.deepEqual((await bandsox.images.get(image.id)).references, [])
  assert.equal(next.image.layers.length, image.layers.length + 1)
  await second.delete()
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test('a sandbox that has changed nothing gives an empty layer, also once it was started again', { skip }, async () => {
  await using storage = await temporaryStorage()
  const bandsox = await open(storage)
  const sandbox = await bandsox.create(SOURCE)
  await sandbox.stop()
  await sandbox.start()
  await sandbox.stop()
  const { image } = await bandsox.images.commit(sandbox.id, 'test/untouched')
  const layer = path.join(storage.folder, 'images/blobs', image.layers.at(-1)?.digest.slice(7) ?? '')
  assert.equal(await runTool(['tar', '--list', '--gzip', '--file', layer]), '')
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test('what was on the disk of a sandbox whose machine was killed is in its image', { skip }, async () => {
  await using storage = await temporaryStorage()
  const bandsox = await open(storage)
  const sandbox = await bandsox.create(SOURCE)
  await sh(sandbox, 'echo saved > /saved; rm -r /data; sync')
  for (const { pid, program } of processesIn(storage.folder))
    if (VMM_PROGRAM.test(program)) process.kill(pid, 'SIGKILL')
  await until(async () => (await sandbox.info()).state.kind === 'failed', 'its end to be seen')
  const { image } = await bandsox.images.commit(sandbox.id, 'test/killed')
  const layer = path.join(storage.folder, 'images/blobs', image.layers.at(-1)?.digest.slice(7) ?? '')
  assert.equal(await runTool(['tar', '--list', '--gzip', '--file', layer]), '.wh.data\nsaved\n')
  await sandbox.delete()
  await storage.assertNothingLeft()
})

const HOOKS = '/etc/bandsox/hooks/snapshot.d'
test('a file of two names in the image is one when it is changed, and in an image of that', { skip }, async () => {
  await using storage = await temporaryStorage()
  const bandsox = await open(storage)
  const sandbox = await bandsox.create(SOURCE)
  const look =
    "cat /data/hard/two; stat -c '%h' /data/hard/one /data/hard/two; stat -c '%i' /data/hard/* | uniq | wc -l"
  assert.equal(await sh(sandbox, look), 'one\n2\n2\n1\n')
  await sh(sandbox, 'echo more >> /data/hard/one')
  assert.equal(await sh(sandbox, look), 'one\nmore\n2\n2\n1\n')
  const { image } = await bandsox.images.commit(sandbox.id, 'test/names')
  assert.deepEqual(await layerOf(storage, image), ['data', 'data/hard', 'data/hard/one', 'data/hard/two'])
  await sandbox.restart()
  assert.equal(await sh(sandbox, look), 'one\nmore\n2\n2\n1\n')
  await sandbox.delete({ force: true })
  const copy = await bandsox.create('test/names', { pull: 'never' })
  assert.equal(await sh(copy, look), 'one\nmore\n2\n2\n1\n')
  await copy.delete({ force: true })
  await storage.assertNothingLeft()
})

test('what cannot be committed is refused with a reason, before anything is made', { skip }, async () => {
  await using storage = await temporaryStorage()
  const { folder: at } = storage
  const bandsox = await open(storage)
  const sandbox = await bandsox.create(SOURCE, { name: 'busy' })
  const hook = `${HOOKS}/10-bad`
  await sh(sandbox, `mkdir -p ${HOOKS}; printf '#!/bin/sh\necho not now; exit 1\n' > ${hook}; chmod 755 ${hook}`)
  for (const [args, status, says] of [
    [['busy', 'test/x'], 70, /cannot commit sandbox sbx_\w+: .*10-bad.* not now/],
    [['nobody', 'test/x'], 66, /there is no sandbox "nobody", nor such a snapshot/],
    [['busy', 'Test//x'], 64, /Test/],
    [['busy', 'test/x', '--workdir', 'relative'], 64, /workingDir: "relative" is no absolute path/],
    [['busy', 'test/x', '--cmd', 'sh'], 64, /JSON array of strings/],
  ] as const) {
    const result = await cli(at, ['image', 'commit', ...args])
    assert.equal(result.status, status, result.stderr)
    assert.match(result.stderr, says)
  }
  assert.equal(await sh(sandbox, 'echo it goes on'), 'it goes on\n')
  assert.deepEqual(namesIn(path.join(at, 'vms')), [sandbox.id])
  await sandbox.stop()
  await bandsox.images.remove(SOURCE, { force: true })
  const removed = await cli(at, ['image', 'commit', 'busy', 'test/x'])
  assert.equal(removed.status, 66, removed.stderr)
  assert.match(removed.stderr, /its image sha256:\w+ was removed\nhint: fetch it again/)
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test(`a commit that is killed at ${KILLS} random moments leaves nothing after the next command`, { skip }, async () => {
  await using storage = await temporaryStorage()
  const { folder: at } = storage
  const bandsox = await open(storage)
  const sandbox = await bandsox.create(SOURCE, { diskMib: 64 }) // it is read whole, twice
  await sh(sandbox, 'head -c 3000000 /dev/urandom > /random')
  await sandbox.stop()
  const disk = await digestFile(diskOf(storage, sandbox))
  const images = await bandsox.images.list()
  const before = await namesOfImages(at)

  const commit = async (killAfterMs?: number) => {
    const child = startCli(at, ['image', 'commit', sandbox.id, 'test/killed'])
    child.stdout?.resume()
    child.stderr?.resume()
    const ended = once(child, 'close')
    if (killAfterMs !== undefined) await delay(killAfterMs)
    if (killAfterMs !== undefined) child.kill('SIGKILL')
    return (await ended)[0] as number | null
  }
  const startedAt = performance.now()
  assert.equal(await commit(), 0)
  const wholeMs = performance.now() - startedAt
  await bandsox.images.remove('test/killed')
  assert.deepEqual(await namesOfImages(at), before)

  const random = randomBytes(KILLS * 4, SEED)
  let killed = 0
  for (let round = 0; round < KILLS; round++) {
    // One in each part of it: were all of them in its last one, a machine that is faster by then would be killed by none.
    const moment = (round + random.readUInt32LE(round * 4) / 2 ** 32) / KILLS
    if ((await commit(moment * wholeMs)) === null) killed++
    const listed = await cli(at, ['vm', 'list', '--json'])
    assert.equal(listed.status, 0, listed.stderr)
    assert.deepEqual(namesIn(path.join(at, 'vms')), [sandbox.id])
    if ((await bandsox.images.list()).length > images.length) await bandsox.images.remove('test/killed')
    assert.equal((await cli(at, ['image', 'prune'])).status, 0)
    assert.deepEqual(await namesOfImages(at), before)
  }
  assert.ok(killed > KILLS / 3, `only ${killed} of ${KILLS} commits were killed before their end`)
  assert.equal(await digestFile(diskOf(storage, sandbox)), disk, 'the disk of the sandbox was changed')
  assert.equal(await commit(), 0)
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test('a commit that is cancelled ends its machine', { skip }, async () => {
  await using storage = await temporaryStorage()
  const bandsox = await open(storage)
  const sandbox = await bandsox.create(SOURCE)
  await sandbox.stop()
  const cancel = new AbortController()
  const commit = bandsox.images.commit(sandbox.id, 'test/cancelled', { signal: cancel.signal })
  const refused = assert.rejects(commit, { message: 'enough' })
  await until(() => namesIn(path.join(storage.folder, 'vms')).length === 2, 'the machine that reads the disk')
  cancel.abort(new Error('enough'))
  await refused
  assert.deepEqual(namesIn(path.join(storage.folder, 'vms')), [sandbox.id])
  await sandbox.delete()
  await storage.assertNothingLeft()
})
