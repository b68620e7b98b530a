import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { chmod, mkdir, mkdtemp, readdir, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { areGuestProgramsBuilt, buildGuestPrograms } from './lib/guest-programs.mjs'
import { holds } from './lib/node-modules.mjs'
import { ensurePackages, goRequirement, installLine, requirements } from './lib/packages.mjs'
import { cacheFolder, root, storageFolder } from './lib/paths.mjs'
import { checkPlatform } from './lib/platform.mjs'
import { runSteps, StepError } from './lib/step.mjs'
import { findVersion, isAtLeast } from './lib/version.mjs'
import { ensureVsock } from './lib/vsock.mjs'

/** The user nobody, in Debian and Ubuntu. */
const NOBODY = 65534

/** @type {string} */
let folder
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bandsox-setup-'))
})
afterEach(() => rm(folder, { recursive: true }))

/**
 * A PATH with everything of this host but these programs.
 *
 * @param {string[]} hidden
 */
async function pathWithout(...hidden) {
  const bin = join(folder, 'bin')
  await mkdir(bin)
  for (const source of ['/usr/local/bin', '/usr/bin', '/usr/sbin', '/bin', '/sbin']) {
    for (const name of await readdir(source)) {
      if (hidden.includes(name)) continue
      await symlink(join(source, name), join(bin, name)).catch((error) => {
        if (error.code !== 'EEXIST') throw error // the same name in a later folder
      })
    }
  }
  return bin
}

/**
 * Puts a program into the folder that prints a text.
 *
 * @param {string} name
 * @param {string} text
 */
async function fakeProgram(name, text) {
  const bin = join(folder, 'fake')
  await mkdir(bin, { recursive: true })
  await writeFile(join(bin, name), `#!/bin/sh\necho '${text}'\n`)
  await chmod(join(bin, name), 0o755)
  return bin
}

/**
 * Runs set-up as a user would, away from this host's caches.
 *
 * @param {{ args?: string[], path: string, uid?: number }} options
 * @returns {Promise<{ code: number | null, output: string }>}
 */
function runSetUp({ args = [], path, uid }) {
  const env = { PATH: path, HOME: folder, BANDSOX_STORAGE: join(folder, 'storage') }
  const identity = uid === undefined ? {} : { uid, gid: uid }
  const child = spawn(process.execPath, [join(root, 'scripts/setup.mjs'), ...args], { env, ...identity })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      output += text
    })
  }
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code) => resolve({ code, output }))
  })
}

test('without Go, set-up says what to run', async () => {
  const path = await pathWithout('go', 'sudo')
  const missing = ensurePackages({ wanted: [goRequirement], env: { PATH: path }, install: false })
  await assert.rejects(missing, {
    message: 'go is not installed (builds the guest agent)',
    remedy: 'sudo apt-get update && sudo apt-get install --yes --no-install-recommends golang-go',
  })
})

test('without a vsock backend and without cargo, set-up says so in one sentence and goes on', async (t) => {
  if (existsSync('/dev/vhost-vsock')) return t.skip('this host has /dev/vhost-vsock')
  const { output } = await runSetUp({
    args: ['--no-install'],
    path: await pathWithout('go', 'cargo', 'modprobe', 'sudo'),
  })
  assert.match(
    output,
    /^! vsock +no vsock backend: \/dev\/vhost-vsock cannot be opened, .* there is no cargo to build it with; /m,
  )
  assert.match(output, /^ {2}remedy: sudo modprobe vhost_vsock, or install Rust 1\.74 or later and run this again$/m)
  assert.match(output, /^✓ platform /m)
})

test('an ordinary user without sudo is told the one line to run, and nothing is made', async (t) => {
  const isRoot = process.getuid?.() === 0
  const uid = isRoot ? NOBODY : undefined
  if (isRoot && !canRead(NOBODY, join(root, 'scripts/setup.mjs'))) return t.skip('nobody may not read this checkout')
  await chmod(folder, 0o755)
  const go = await fakeProgram('go', 'go version go1.26.0 linux/amd64')
  const path = `${await pathWithout('lz4', 'sudo', 'go')}:${go}`
  const { code, output } = await runSetUp({ path, uid })
  assert.equal(code, 1)
  assert.match(output, /^✗ packages +lz4 is not installed \(unpacks the guest kernel\) /m)
  const line = 'sudo apt-get update && sudo apt-get install --yes --no-install-recommends lz4'
  assert.equal(output.split('\n').filter((each) => each === `  remedy: ${line}`).length, 1)
  assert.match(output, /^set-up is not complete: packages, .*host$/m)
  assert.equal(existsSync(join(folder, 'storage')), false)
})

test('a program that is too old is named with both versions', async () => {
  const bin = await fakeProgram('sqfstar', 'sqfstar version 4.4 (2019/08/29)')
  const wanted = requirements.filter(({ program }) => program === 'sqfstar')
  await assert.rejects(ensurePackages({ wanted, env: { PATH: bin }, install: false }), {
    message: 'sqfstar 4.4 is too old (builds images): 4.5 or later is needed',
    remedy: installLine(['squashfs-tools']),
  })
})

test('programs that are there are listed with their versions', async () => {
  const bin = await fakeProgram('go', 'go version go1.19.8 linux/amd64')
  const outcome = await ensurePackages({ wanted: [goRequirement], env: { PATH: bin }, install: false })
  assert.deepEqual(outcome, { detail: 'go 1.19.8' })
})

test('the vsock backend is the kernel’s, else a program on PATH, else the one built before', async () => {
  const kernelDevice = join(folder, 'vhost-vsock')
  const find = (PATH = folder) => ensureVsock({ env: { PATH }, cache: folder, install: false, kernelDevice })
  assert.match((await find()).lacking ?? '', /there is no cargo to build it with/)
  const built = join(folder, 'vhost-device-vsock-0.3.0/bin')
  await mkdir(built, { recursive: true })
  await writeFile(join(built, 'vhost-device-vsock'), '', { mode: 0o755 })
  assert.deepEqual(await find(), { detail: join(built, 'vhost-device-vsock') })
  const bin = await fakeProgram('vhost-device-vsock', '')
  assert.deepEqual(await find(bin), { detail: join(bin, 'vhost-device-vsock') })
  await writeFile(kernelDevice, '')
  assert.deepEqual(await find(bin), { detail: `kernel (${kernelDevice})` })
})

test('a cargo that is too old is named with both versions', async () => {
  const bin = await fakeProgram('cargo', 'cargo 1.65.0')
  const kernelDevice = join(folder, 'vhost-vsock')
  const { lacking } = await ensureVsock({ env: { PATH: bin }, cache: folder, install: true, kernelDevice })
  assert.match(
    lacking ?? '',
    /cargo 1\.65\.0 is too old to build it: 1\.74 or later is needed; sandboxes use the serial link$/,
  )
})

test('a cargo that fails leaves set-up without a backend, not without an end', async () => {
  const bin = await fakeProgram('cargo', 'cargo 1.80.0')
  await writeFile(
    join(bin, 'cargo'),
    '#!/bin/sh\n[ "$1" = --version ] && echo cargo 1.80.0 && exit\necho "error: no network" >&2; exit 101\n',
  )
  const kernelDevice = join(folder, 'vhost-vsock')
  const { lacking } = await ensureVsock({ env: { PATH: bin }, cache: folder, install: true, kernelDevice })
  assert.match(
    lacking ?? '',
    /it cannot be built: cargo install vhost-device-vsock … exited with 101: error: no network; sandboxes use the serial link$/,
  )
})

test('guest programs are built once, and again when their sources change', async (t) => {
  if (spawnSync('go', ['version']).error !== undefined) return t.skip('go is not installed')
  const folders = { guest: join(folder, 'guest'), native: join(folder, 'native') }
  await mkdir(join(folders.guest, 'cmd/hello'), { recursive: true })
  await writeFile(join(folders.guest, 'go.mod'), 'module hello\n\ngo 1.19\n')
  await writeFile(join(folders.guest, 'cmd/hello/main.go'), 'package main\n\nfunc main() {}\n')
  assert.equal(await areGuestProgramsBuilt(folders), false)
  const env = process.env
  assert.deepEqual(await buildGuestPrograms({ ...folders, env }), { detail: 'hello', changed: true })
  // Without Go, since there is nothing to build.
  assert.deepEqual(await buildGuestPrograms({ ...folders, env: { PATH: folder } }), { detail: 'hello' })
  assert.equal(spawnSync(join(folders.native, 'hello')).status, 0)
  await writeFile(join(folders.guest, 'cmd/hello/main.go'), 'package main\n\nfunc main() { broken }\n')
  await assert.rejects(buildGuestPrograms({ ...folders, env }), /undefined: broken/)
  assert.equal(spawnSync(join(folders.native, 'hello')).status, 0)
  assert.deepEqual((await readdir(folders.native)).sort(), ['hello', 'sources.sha256'])
})

test('another system, another processor and an old Node are refused', () => {
  const host = { platform: 'linux', arch: 'x64', node: '20.20.2', osRelease: 'PRETTY_NAME="Debian GNU/Linux 12"\n' }
  assert.deepEqual(checkPlatform(host), { detail: 'Debian GNU/Linux 12, x86-64, Node 20.20.2' })
  assert.throws(
    () => checkPlatform({ ...host, platform: 'darwin' }),
    /runs on Linux on x86-64, and this is darwin on x64/,
  )
  assert.throws(() => checkPlatform({ ...host, arch: 'arm64' }), /this is linux on arm64/)
  assert.throws(
    () => checkPlatform({ ...host, node: '18.19.1' }),
    /Node 18\.19\.1 is too old: 20\.12 or later is needed/,
  )
})

test('node_modules is complete when it holds every package of the lock, but for those of other platforms', () => {
  const wanted = {
    '': {},
    'packages/sdk': { version: '0.1.0' },
    'node_modules/@bandsox/sdk': { link: true },
    'node_modules/zod': { version: '4.0.0', integrity: 'sha512-a' },
    'node_modules/biome-darwin': { version: '1.0.0', integrity: 'sha512-b', optional: true },
  }
  assert.equal(holds({ 'node_modules/zod': { version: '4.0.0', integrity: 'sha512-a' } }, wanted), true)
  assert.equal(holds({ 'node_modules/zod': { version: '4.0.1', integrity: 'sha512-c' } }, wanted), false)
  assert.equal(holds({}, wanted), false)
})

test('a step whose need failed does not begin, and the others still run', async () => {
  /** @type {string[]} */
  const lines = []
  const failed = await runSteps(
    [
      {
        name: 'first',
        run: async () => {
          throw new StepError('no', { remedy: 'say yes' })
        },
      },
      { name: 'second', needs: ['first'], run: async () => assert.fail('must not run') },
      { name: 'third', run: async () => ({ detail: 'there', changed: true }) },
      { name: 'fourth', needs: ['third'], run: async () => ({ detail: 'there' }) },
    ],
    (line) => lines.push(line),
  )
  assert.deepEqual(failed, ['first', 'second'])
  assert.deepEqual(
    lines.map((line) => line.replace(/ +\d+ ms$/, '')),
    ['✗ first        no', '  remedy: say yes', '+ third        there', '✓ fourth       there'],
  )
})

test('versions are compared by number', () => {
  assert.equal(isAtLeast('7.2.22', '7.2'), true)
  assert.equal(isAtLeast('10.0', '7.2'), true)
  assert.equal(isAtLeast('7.1.9', '7.2'), false)
  assert.equal(isAtLeast('1.9', '1.19'), false)
  assert.equal(findVersion('QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)'), '7.2.22')
  assert.equal(findVersion('go version go1.26.8 linux/amd64'), '1.26.8')
  assert.equal(findVersion('none'), undefined)
})

test('storage and cache are where the environment says, else where each user has them', () => {
  assert.equal(storageFolder({ BANDSOX_STORAGE: '/data' }, true), '/data')
  assert.equal(storageFolder({}, true), '/var/lib/bandsox')
  assert.equal(storageFolder({ HOME: '/home/a' }, false), '/home/a/.local/share/bandsox')
  assert.equal(storageFolder({ HOME: '/home/a', XDG_DATA_HOME: '/d' }, false), '/d/bandsox')
  assert.equal(cacheFolder({ HOME: '/home/a' }), '/home/a/.cache/bandsox')
  assert.equal(cacheFolder({ HOME: '/home/a', XDG_CACHE_HOME: '/c' }), '/c/bandsox')
})

/**
 * @param {number} uid
 * @param {string} path
 */
function canRead(uid, path) {
  return spawnSync(process.execPath, ['-e', 'fs.accessSync(process.argv[1])', path], { uid, gid: uid }).status === 0
}
