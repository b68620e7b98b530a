/** Images of other people's tools, from a real registry to a booted guest: the tree in it is the one that umoci unpacks. */
import assert from 'node:assert/strict'
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { type BandSox, openBandSox, type Sandbox } from 'bandsox'
import { cli } from './support/command-line.js'
import { appGroup, appUser } from './support/debian-python-image.js'
import { type PublishedImage, publishedImage, push, testImagesFolder } from './support/published-images.js'
import { startRegistry } from './support/registry.js'
import { type TestStorage, temporaryStorage } from './support/storage.js'
import { missingTools } from './support/test-tools.js'
import { differences, digestTree, parseTreeDigest, treeDigestProgram } from './support/tree-digest.js'
import { configureImage, umociUnpack } from './support/umoci.js'

const skip = missingTools()
const credentials = { user: 'somebody', password: 'correct horse: battery/staple' }

let folder: string
before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'bandsox-images-'))
})
after(() => rm(folder, { recursive: true, force: true }))

/** `debian-python` has a device node that no image needs, which an image has only by permission. */
async function openWithDevices(storage: TestStorage): Promise<BandSox> {
  const configFile = path.join(folder, 'config.json')
  await writeFile(configFile, JSON.stringify({ images: { limits: { allowDevices: true } } }))
  return await openBandSox({ storage: storage.folder, configFile })
}

/** What the agent mounts over, and what it writes as container engines do. */
const OF_THE_AGENT = ['dev', 'proc', 'sys', 'etc/hostname', 'etc/hosts', 'etc/machine-id']
/** What it makes where an image lacks it. */
const MADE_WHEN_MISSING = ['etc', 'run', 'tmp']
const IN_MEMORY = '/dev/shm/tree-digest'

async function treeInGuest(sandbox: Sandbox, skipped: readonly string[]) {
  await sandbox.files.upload(treeDigestProgram, IN_MEMORY, { mode: 0o755 })
  const options = skipped.flatMap((each) => ['-skip', each])
  const { stdout, stderr, exitCode } = await sandbox
    .exec([IN_MEMORY, '-root', '/', '-x', ...options], { user: '0:0', cwd: '/' })
    .collect()
  assert.equal(exitCode, 0, stderr)
  return parseTreeDigest(stdout)
}

async function compareTrees(sandbox: Sandbox, image: PublishedImage): Promise<number> {
  const rootfs = await umociUnpack(image, path.join(folder, `bundle-${image.name}`))
  const unpacked = await digestTree(rootfs, { skip: OF_THE_AGENT })
  const paths = new Set(unpacked.map((entry) => entry.path))
  const missing = MADE_WHEN_MISSING.filter((each) => !paths.has(each))
  assert.deepEqual(differences(unpacked, await treeInGuest(sandbox, [...OF_THE_AGENT, ...missing])), [])
  return unpacked.length
}

test('Debian with Python, of five layers, boots as it was published and runs what its configuration says', {
  skip,
}, async () => {
  await using storage = await temporaryStorage()
  await using registry = await startRegistry()
  const image = await publishedImage('debian-python', testImagesFolder)
  const reference = await push(image, registry)
  const bandsox = await openWithDevices(storage)
  const sandbox = await bandsox.create(reference, { memoryMib: 512 })

  const { stdout, stderr, exitCode } = await sandbox.run().collect()
  assert.deepEqual({ stderr, exitCode }, { stderr: '', exitCode: 0 })
  assert.deepEqual(stdout.trimEnd().split('\n'), [
    `uid=${appUser.uid}`,
    `gid=${appUser.gid}`,
    `groups=[${appUser.gid} ${appGroup.gid}]`,
    'cwd=/app/work',
    'greeting=hello = from the image',
    'args=["first argument" "--second"]',
  ])
  const other = await sandbox.run(['of the call'], { env: { GREETING: 'of the call' } }).collect()
  assert.match(other.stdout, /^greeting=of the call\nargs=\["of the call"\]$/m)

  const { config, layers, platform } = await bandsox.images.get(reference)
  assert.equal(layers.length, 5)
  assert.equal(platform, 'linux/amd64')
  assert.deepEqual(config.entrypoint, ['python3', '/app/main.py'])
  assert.deepEqual(config.cmd, ['first argument', '--second'])
  assert.equal(config.user, 'app')
  assert.equal(config.workingDir, '/app/work')
  assert.equal(config.stopSignal, 'SIGINT')
  assert.equal(config.labels['dev.bandsox.test'], 'debian python')
  assert.deepEqual(config.exposedPorts.sort(), ['5353/udp', '8080/tcp'])

  assert.ok((await compareTrees(sandbox, image)) > 5000)
  await sandbox.delete({ force: true })
  await storage.assertNothingLeft()
})

test('busybox boots as it was published, and its command is what run runs', { skip }, async () => {
  await using storage = await temporaryStorage()
  await using registry = await startRegistry({ credentials })
  const image = await publishedImage('busybox', testImagesFolder)
  const reference = await push(image, registry)

  const refused = await cli(storage.folder, ['image', 'pull', reference])
  assert.equal(refused.status, 77)
  assert.match(refused.stderr, /asked without credentials.*\nhint: log in with bandsox login/)
  const wrong = await cli(
    storage.folder,
    ['image', 'pull', reference, '--username', credentials.user, '--password-stdin'],
    'guessed\n',
  )
  assert.equal(wrong.status, 77)
  assert.match(wrong.stderr, /asked as somebody, with the password/)
  const pulled = await cli(
    storage.folder,
    ['image', 'pull', reference, '--username', credentials.user, '--password-stdin', '--json'],
    `${credentials.password}\n`,
  )
  assert.equal(pulled.status, 0, pulled.stderr)
  const events = pulled.stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { kind: string; changed?: boolean })
  assert.deepEqual(
    new Set(events.map(({ kind }) => kind)),
    new Set(['resolving', 'resolved', 'layer', 'disk', 'image']),
  )
  assert.equal(events.at(-1)?.changed, true)

  const login = (password: string) =>
    cli(
      storage.folder,
      ['login', registry.address, '--username', credentials.user, '--password-stdin'],
      `${password}\n`,
    )
  process.env['XDG_CONFIG_HOME'] = path.join(folder, 'configuration')
  assert.equal((await login('guessed')).status, 77)
  assert.equal((await cli(storage.folder, ['image', 'pull', reference])).status, 77)
  assert.equal((await login(credentials.password)).status, 0)
  const known = await cli(storage.folder, ['image', 'pull', reference])
  assert.equal(known.status, 0, known.stderr)
  assert.match(known.stdout, /^Image is up to date: /)

  const bandsox = await openBandSox({ storage: storage.folder })
  const sandbox = await bandsox.create(reference, { pull: 'never' })
  const { stdout } = await sandbox.run(undefined, { input: 'echo "I am $(id -u)"\nexit 3\n' }).collect()
  assert.equal(stdout, 'I am 0\n')
  await compareTrees(sandbox, image)
  await assert.rejects(bandsox.images.remove(reference), { code: 'image-in-use', message: new RegExp(sandbox.id) })
  await sandbox.delete({ force: true })
  assert.equal((await bandsox.images.remove(reference)).images.length, 1)
  await assert.rejects(bandsox.images.get(reference), { code: 'image-not-found' })
  await storage.assertNothingLeft()
})

test('an image of one static program boots, and runs it as a user without a name', { skip }, async () => {
  await using storage = await temporaryStorage()
  await using registry = await startRegistry()
  const image = await publishedImage('scratch', testImagesFolder)
  const reference = await push(image, registry)
  const bandsox = await openBandSox({ storage: storage.folder })
  const sandbox = await bandsox.create(reference)
  const { stdout } = await sandbox.run().collect()
  assert.deepEqual(stdout.trimEnd().split('\n'), [
    'uid=1234',
    'gid=5678',
    'groups=[]',
    'cwd=/',
    'greeting=hello from nothing',
    'args=["first argument" "--second"]',
  ])
  await compareTrees(sandbox, image)
  await sandbox.delete({ force: true })
  await storage.assertNothingLeft()
})

test('two names of one image share its disk, export gives back its digests, and a tag that moves is noticed', {
  skip,
}, async () => {
  await using storage = await temporaryStorage()
  await using registry = await startRegistry()
  const scratch = await publishedImage('scratch', testImagesFolder)
  const reference = await push(scratch, registry)
  const bandsox = await openBandSox({ storage: storage.folder })
  const first = await bandsox.images.pull(reference)
  const second = await bandsox.images.import(scratch.layout, { reference: 'localhost/mine:1' })
  assert.equal(second.image.id, first.image.id)
  assert.deepEqual(second.image.references.sort(), [reference, 'localhost/mine:1'].sort())

  await bandsox.images.prune({ layers: true })
  assert.equal((await bandsox.images.get(reference)).layerBytes, 0)
  const exported = path.join(folder, 'exported')
  await bandsox.images.export(reference, exported)
  const index = JSON.parse(await readFile(path.join(exported, 'index.json'), 'utf8')) as {
    manifests: { digest: string }[]
  }
  assert.equal(index.manifests[0]?.digest, first.image.digest)
  await umociUnpack({ layout: exported, tag: reference }, path.join(folder, 'exported-bundle'))
  await assert.rejects(bandsox.images.export(reference, exported), { code: 'file-error' })

  assert.equal((await bandsox.images.pull(reference)).changed, false)
  const busybox = await publishedImage('busybox', testImagesFolder)
  await push({ ...busybox, name: 'scratch' }, registry)
  const moved: string[] = []
  const onEvent = (event: { kind: string }) => void moved.push(event.kind)
  const third = await bandsox.images.pull(reference, { onEvent })
  assert.ok(moved.includes('moved'))
  assert.notEqual(third.image.id, first.image.id)
  assert.deepEqual(third.image.references, [reference])
  assert.deepEqual((await bandsox.images.get('localhost/mine:1')).id, first.image.id)
})

test('a stop gives the image’s command its own signal and its children none, and makes a missing working folder', {
  skip,
}, async () => {
  await using storage = await temporaryStorage()
  const busybox = await publishedImage('busybox', testImagesFolder)
  const layout = path.join(folder, 'with-stop-signal')
  await cp(busybox.layout, layout, { recursive: true })
  const script = `
    say() { echo "$1" > /dev/console; }
    (trap 'say "the child was asked"' TERM USR1; while :; do sleep 0.05; done) &
    trap 'say "the command was asked by USR1"; kill -KILL $!; exit' USR1
    trap 'say "the command was asked by TERM"' TERM
    echo "ready in $(pwd)"
    while :; do sleep 0.05; done`
  await configureImage(
    { layout, tag: busybox.tag },
    { stopSignal: 'USR1', workdir: '/not/there/yet', cmd: ['sh', '-c', script] },
  )
  const bandsox = await openBandSox({ storage: storage.folder })
  const sandbox = await bandsox.create(`oci:${layout}:${busybox.tag}`)
  const job = sandbox.run()
  for await (const { data } of job.output) {
    assert.equal(Buffer.from(data).toString(), 'ready in /not/there/yet\n')
    await sandbox.stop()
    break // nobody is there any more
  }
  const console: Uint8Array[] = []
  for await (const piece of sandbox.logs()) console.push(piece)
  const said = Buffer.concat(console)
    .toString()
    .match(/the (?:child|command) was asked.*?(?=\r?\n)/g)
  assert.deepEqual(said, ['the command was asked by USR1'])
  await sandbox.delete()
  await storage.assertNothingLeft()
})
