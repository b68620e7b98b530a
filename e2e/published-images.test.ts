/** The images that tests pull, and the registry that they are pulled from: what the tests of `image pull` rely on. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { appGroup, appUser } from './support/debian-python-image.js'
import {
  copyBack,
  type PublishedImageName,
  publishedImage,
  push,
  testImagesFolder,
} from './support/published-images.js'
import { startRegistry } from './support/registry.js'
import { until } from './support/storage.js'
import { missingTools, runTool } from './support/test-tools.js'
import { differences, digestTree, type TreeEntry } from './support/tree-digest.js'
import { type ImageLayout, umociUnpack } from './support/umoci.js'

const skip = missingTools()
const names: readonly PublishedImageName[] = ['debian-python', 'busybox', 'scratch']
const credentials = { user: 'somebody', password: 'correct horse: battery/staple' }

let folder: string
before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'bandsox-published-images-'))
})
after(() => rm(folder, { recursive: true, force: true }))

/** A layout that holds what came back from a registry. */
const layoutOf = (name: string): ImageLayout => ({ layout: path.join(folder, name), tag: 'back' })

/** Digest of the manifest, and so of all that the image is. */
async function manifestDigest({ layout }: ImageLayout): Promise<string> {
  const index = JSON.parse(await readFile(path.join(layout, 'index.json'), 'utf8')) as {
    manifests: { digest: string }[]
  }
  assert.equal(index.manifests.length, 1)
  return index.manifests[0]?.digest ?? ''
}

for (const name of names) {
  test(`${name} is pushed to a registry and comes back the same`, { skip }, async () => {
    const image = await publishedImage(name, testImagesFolder)
    await using registry = await startRegistry()
    const back = layoutOf(`${name}-back`)
    await copyBack(await push(image, registry), back)
    assert.equal(await manifestDigest(back), await manifestDigest(image))
  })
}

test('a registry with a password serves who knows it, and nobody else', { skip }, async () => {
  const image = await publishedImage('scratch', testImagesFolder)
  await using registry = await startRegistry({ credentials })
  const { address } = registry
  await assert.rejects(push(image, { address }), /authentication required|unauthorized/i)
  const wrong = { ...credentials, password: 'guessed' }
  await assert.rejects(push(image, { address, credentials: wrong }), /authentication required|unauthorized/i)
  const reference = await push(image, registry)
  await assert.rejects(copyBack(reference, layoutOf('refused')), /authentication required|unauthorized/i)
  const back = layoutOf('allowed')
  await copyBack(reference, back, credentials)
  assert.equal(await manifestDigest(back), await manifestDigest(image))
})

/** Starts a registry in another process, which then does what is asked of it. */
async function registryOfAnotherProcess(action: string) {
  const temporary = await mkdtemp(path.join(folder, 'tmp-'))
  const module = new URL('./support/registry.js', import.meta.url).href
  const script = `
    const { startRegistry } = await import(${JSON.stringify(module)})
    const registry = await startRegistry()
    console.log(registry.address)
    process.stdin.once('data', async () => { ${action} })
  `
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
    env: { ...process.env, TMPDIR: temporary },
    stdio: ['pipe', 'pipe', 'ignore'],
  })
  const ended = new Promise((resolve) => child.once('exit', resolve))
  const [address] = (await child.stdout.setEncoding('utf8').take(1).toArray()) as string[]
  const url = `http://${address?.trim()}/v2/`
  assert.equal((await fetch(url)).status, 200)
  assert.equal((await readdir(temporary)).length, 1)
  child.stdin.end('go on\n')
  await ended
  return { url, temporary }
}

/** Whether it is refused to connect, at once or soon: nobody announces the end of another's child. */
const untilGone = (url: string) =>
  until(
    () =>
      fetch(url).then(
        () => false,
        () => true,
      ),
    `nobody to answer at ${url}`,
  )

for (const [how, action] of [
  [
    'disposed of, twice',
    'await registry[Symbol.asyncDispose](); await registry[Symbol.asyncDispose](); process.exit()',
  ],
  ['forgotten by a test that fails', 'throw new Error("a test fails")'],
] as const) {
  test(`nothing is left of a registry that is ${how}`, { skip }, async () => {
    const { url, temporary } = await registryOfAnotherProcess(action)
    await untilGone(url)
    assert.deepEqual(await readdir(temporary), [])
  })
}

test('a registry ends with a process that is killed', { skip }, async () => {
  const { url } = await registryOfAnotherProcess('process.kill(process.pid, "SIGKILL")')
  await untilGone(url)
})

test('umoci unpacks debian-python to what its layers say', { skip }, async (context) => {
  const image = await publishedImage('debian-python', testImagesFolder)
  const rootfs = await umociUnpack(image, path.join(folder, 'debian-python'))
  const tree = await digestTree(rootfs)
  const found = new Map(tree.map((entry) => [entry.path, entry]))
  const app = (name: string) => found.get(`app/${name}`)
  const childrenOf = (name: string) =>
    tree.map((entry) => entry.path).filter((each) => path.posix.dirname(each) === `app/${name}`)

  // Removed, replaced and opaque.
  for (const name of ['usr/share/bash-completion', 'usr/share/perl5/Debconf', 'usr/bin/perl', 'app/bin/tool-again'])
    assert.equal(found.get(name), undefined, name)
  for (const name of ['unwanted', 'replaced/removed', 'replaced/removed-file', 'replaced/kept/inner/file'])
    assert.equal(app(name), undefined, name)
  assert.deepEqual(childrenOf('cache'), ['app/cache/new'])
  assert.deepEqual(childrenOf('replaced/kept'), ['app/replaced/kept/file', 'app/replaced/kept/inner'])
  assert.deepEqual(childrenOf('replaced/remade'), ['app/replaced/remade/file', 'app/replaced/remade/new'])
  assert.deepEqual(childrenOf('replaced/file-becomes-folder'), ['app/replaced/file-becomes-folder/file'])
  assert.deepEqual(childrenOf('replaced/symlink-becomes-folder'), ['app/replaced/symlink-becomes-folder/own'])
  assert.equal(app('replaced/becomes-symlink')?.target, '../names')
  assert.equal(app('replaced/becomes-file')?.type, 'file')
  assert.equal(app('replaced/file-becomes-symlink')?.target, 'kept/file')
  assert.equal(app('replaced/symlink-becomes-file')?.type, 'file')
  assert.equal(app('replaced/symlink-becomes-another')?.target, '../main.py')

  // Links, across folders and across layers.
  assert.deepEqual([app('bin/tool')?.links, found.get('usr/local/bin/tool')?.sameAs], [2, 'app/bin/tool'])
  assert.deepEqual([app('shared-by-all')?.links, app('shared-at-last')?.sameAs], [2, 'app/shared-at-last'])
  assert.deepEqual([app('bin/env')?.links, found.get('usr/bin/env')?.sameAs], [2, 'app/bin/env'])

  // Modes, owners, attributes, devices.
  const modeAndOwner = (entry: TreeEntry | undefined) => [entry?.mode, entry?.uid, entry?.gid]
  assert.deepEqual(modeAndOwner(app('bin/setuid')), ['4755', 0, 0])
  assert.deepEqual(modeAndOwner(app('bin/setuid-no-more')), ['0755', 0, 0])
  assert.deepEqual(modeAndOwner(app('bin/setgid')), ['2755', 0, appGroup.gid])
  assert.deepEqual(modeAndOwner(app('spool')), ['3770', 0, 0])
  assert.deepEqual(modeAndOwner(app('work')), ['0750', appUser.uid, appUser.gid])
  assert.deepEqual(modeAndOwner(app('private')), ['0600', appUser.uid, appUser.gid])
  assert.deepEqual(modeAndOwner(app('owned-from-afar')), ['0644', 3_000_000, 4_000_000_000])
  assert.deepEqual(Object.keys(app('bin/capable')?.xattrs ?? {}), ['security.capability'])
  assert.deepEqual(app('bin/capable-no-more')?.xattrs, undefined)
  assert.deepEqual(app('attributed')?.xattrs, {
    'trusted.kept': Buffer.from('for root only').toString('hex'),
    'user.binary': 'fe',
  })
  assert.deepEqual([app('devices/null')?.device, app('devices/loop')?.device], ['1:3', '7:300'])
  assert.equal(app('devices/fifo')?.type, 'fifo')
  assert.deepEqual([app('sparse')?.size, app('empty')?.size], [3_000_010, 0])
  assert.equal(app('names/not \\xff\\xfe')?.size, 6)
  assert.equal(app('names/new\\x0aline')?.type, 'file')

  const count = (isCounted: (entry: TreeEntry) => boolean) => tree.filter(isCounted).length
  context.diagnostic(
    `${tree.length} paths: ${count(({ type }) => type === 'file')} files, ${count(({ type }) => type === 'folder')} folders, ` +
      `${count(({ type }) => type === 'symlink')} symbolic links, ${count(({ sameAs }) => sameAs !== undefined)} hard links, ` +
      `${count(({ device }) => device !== undefined)} devices, ${count(({ xattrs }) => xattrs !== undefined)} with attributes`,
  )

  const printed = await runTool([
    ...['chroot', `--userspec=${appUser.uid}:${appUser.gid}`, `--groups=${appGroup.gid}`, rootfs],
    ...['env', '--chdir=/app/work', 'GREETING=hello', 'python3', '/app/main.py', 'first argument', '--second'],
  ])
  assert.equal(
    printed,
    'uid=1500\ngid=1500\ngroups=[1600]\ncwd=/app/work\ngreeting=hello\nargs=["first argument" "--second"]\n',
  )
})

test('the names of busybox are links of one file', { skip }, async () => {
  const image = await publishedImage('busybox', testImagesFolder)
  const tree = await digestTree(await umociUnpack(image, path.join(folder, 'busybox')))
  const files = tree.filter(({ sameAs }) => sameAs !== undefined)
  assert.ok(files.length > 200, `${files.length} names`)
  assert.deepEqual(
    [...new Set(files.map(({ links, sameAs }) => `${links} ${sameAs}`))],
    [`${files.length} ${files[0]?.path}`],
  )
})

test('the one program of scratch prints how it was started', { skip }, async () => {
  const image = await publishedImage('scratch', testImagesFolder)
  const rootfs = await umociUnpack(image, path.join(folder, 'scratch'))
  assert.deepEqual(
    (await digestTree(rootfs)).map((entry) => entry.path),
    ['.', 'print-process'],
  )
  const argv = ['chroot', '--userspec=1234:5678', '--groups=', rootfs, '/print-process', 'first argument', '--second']
  assert.equal(
    await runTool(argv, { env: { GREETING: 'hello' } }),
    'uid=1234\ngid=5678\ngroups=[]\ncwd=/\ngreeting=hello\nargs=["first argument" "--second"]\n',
  )
})

test('two trees differ by what was done to one of them', { skip }, async () => {
  const image = await publishedImage('scratch', testImagesFolder)
  const rootfs = await umociUnpack(image, path.join(folder, 'changed'))
  const asItWas = await digestTree(rootfs)
  assert.deepEqual(differences(asItWas, await digestTree(rootfs)), [])
  await chmod(path.join(rootfs, 'print-process'), 0o700)
  await writeFile(path.join(rootfs, 'added'), 'by the test')
  const [changed, added, ...others] = differences(asItWas, await digestTree(rootfs))
  assert.match(changed ?? '', /^expected .*"0755".*, found .*"0700"/)
  assert.match(added ?? '', /^not expected: .*"path":"added"/)
  assert.deepEqual(others, [])
  await rm(path.join(rootfs, 'print-process'))
  assert.match(differences(asItWas, await digestTree(rootfs, { skip: ['added'] }))[0] ?? '', /^missing: /)
})
