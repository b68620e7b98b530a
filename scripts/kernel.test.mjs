import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { describeArtifact, writeArtifact } from '../kernel/artifact.mjs'
import { compareConfiguration, definedOptions, parseConfiguration } from '../kernel/configuration.mjs'
import { parseSourcePackage } from '../kernel/source.mjs'
import { findProgram } from './lib/command.mjs'
import { ensurePackages, installLine, kernelRequirements } from './lib/packages.mjs'
import { root } from './lib/paths.mjs'
import { StepError } from './lib/step.mjs'

const fragment = (/** @type {string} */ name) => readFile(join(root, 'kernel', name), 'utf8')

const origin = {
  release: '6.1.0-bandsox',
  source: { name: 'linux-source-6.1', version: '6.1.0-1' },
  compiler: 'gcc 12',
  passedOver: ['RETHUNK'],
}

test('a configuration has values, and what is not set is n', () => {
  const text = '# a comment\n\nCONFIG_A=y\nCONFIG_LSM="landlock"\nCONFIG_NR=64\n# CONFIG_VT is not set\nCONFIG_B=n\n'
  const expected = { A: 'y', LSM: '"landlock"', NR: '64', VT: 'n', B: 'n' }
  assert.deepEqual(Object.fromEntries(parseConfiguration(text, 'x.config')), expected)
})

test('a line that says nothing, and an option that is there twice, are named by their place', () => {
  const refuses = (/** @type {string} */ text, /** @type {RegExp} */ message) =>
    assert.throws(
      () => parseConfiguration(text, 'x.config'),
      (error) => error instanceof StepError && message.test(error.message),
    )
  refuses('CONFIG_A=y\nCONFIG_B\n', /^x\.config, line 2: neither an option nor a comment: CONFIG_B$/)
  refuses('CONFIG_A=y\n# CONFIG_A is not set\n', /^x\.config, line 2: CONFIG_A for the second time$/)
})

test('options are found in Kconfig files, however they are indented', () => {
  const text =
    'menuconfig NET\n\tbool "config THIS is not"\nconfig VETH\n  config INNER\n\tdepends on NET\nconfigdefault X\n'
  assert.deepEqual(definedOptions(text), ['NET', 'VETH', 'INNER'])
})

test('what Kconfig dropped, changed or does not know is found', () => {
  const compared = compareConfiguration({
    wanted: new Map([
      ['KEPT', 'y'],
      ['OFF', 'n'],
      ['DROPPED', 'y'],
      ['NUMBER', '4'],
      ['NEVER', 'y'],
      ['FORCED', 'n'],
    ]),
    ifKnown: new Map([
      ['NEWER', 'y'],
      ['OLDER', 'y'],
      ['OLDER_DROPPED', 'y'],
    ]),
    result: new Map([
      ['KEPT', 'y'],
      ['NUMBER', '2'],
      ['OLDER', 'y'],
      ['FORCED', 'y'],
      ['EXTRA', 'y'],
    ]),
    known: new Set(['KEPT', 'OFF', 'DROPPED', 'NUMBER', 'FORCED', 'OLDER', 'OLDER_DROPPED', 'EXTRA']),
  })
  assert.deepEqual(compared, {
    unmet: [
      'CONFIG_DROPPED is n instead of y',
      'CONFIG_NUMBER is 2 instead of 4',
      'CONFIG_NEVER=y: this kernel has no such option',
      'CONFIG_FORCED is y instead of n',
      'CONFIG_OLDER_DROPPED is n instead of y',
    ],
    passedOver: ['NEWER'],
  })
})

test('the two fragments are whole, share no option, and build in all that the guest would else load as modules', async () => {
  const wanted = parseConfiguration(await fragment('bandsox.config'), 'bandsox.config')
  const ifKnown = parseConfiguration(await fragment('version-dependent.config'), 'version-dependent.config')
  assert.deepEqual(
    [...ifKnown.keys()].filter((option) => wanted.has(option)),
    [],
  )
  // Options of what packages/bandsox/src/boot/modules.ts lists, in its order.
  const modules =
    'VIRTIO_PCI VIRTIO_MMIO VIRTIO_BLK VIRTIO_CONSOLE SQUASHFS OVERLAY_FS EXT4_FS VIRTIO_VSOCKETS HW_RANDOM_VIRTIO ACPI_BUTTON INPUT_EVDEV VIRTIO_NET VIRTIO_BALLOON TUN FUSE_FS BLK_DEV_LOOP'
  const needed = [
    ...modules.split(' '),
    'PVH',
    'KVM_GUEST',
    'SERIAL_8250_PNP',
    'VIRTIO_MMIO_CMDLINE_DEVICES',
    'SQUASHFS_LZ4',
  ]
  assert.deepEqual(
    needed.filter((option) => wanted.get(option) !== 'y'),
    [],
  )
  assert.equal(wanted.get('MODULES'), 'n')
})

test('the package of a series is told from the one that only depends on it', () => {
  const series = 'Package: linux-source-6.1\nVersion: 6.1.192-3\nDepends: binutils, xz-utils\n'
  assert.deepEqual(parseSourcePackage(series), { name: 'linux-source-6.1', version: '6.1.192-3' })
  assert.equal(parseSourcePackage('Package: linux-source\nVersion: 6.1.192-3\nDepends: linux-source-6.1\n'), undefined)
})

test('the manifest has size and SHA-256 of each file', () => {
  const manifest = describeArtifact(origin, new Map([['bzImage', Buffer.from('abc')]]))
  assert.deepEqual(manifest, {
    version: 1,
    ...origin,
    files: {
      bzImage: { sizeBytes: 3, sha256: 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad' },
    },
  })
})

test('an artifact that cannot be finished has no manifest, not even the one of before', async (t) => {
  if ((await findProgram('strip', process.env)) === undefined)
    return t.skip('strip is missing: apt-get install binutils')
  const folder = await mkdtemp(join(tmpdir(), 'bandsox-artifact-'))
  t.after(() => rm(folder, { recursive: true }))
  const [tree, output] = [join(folder, 'tree'), join(folder, 'out')]
  await mkdir(join(tree, 'arch/x86/boot'), { recursive: true })
  for (const name of ['arch/x86/boot/bzImage', '.config', 'modules.builtin']) await writeFile(join(tree, name), name)
  await writeFile(join(tree, 'vmlinux'), await readFile(process.execPath)) // any ELF file
  const manifest = await writeArtifact({ tree, output, origin })
  assert.deepEqual(JSON.parse(await readFile(join(output, 'manifest.json'), 'utf8')), manifest)
  const names = ['bzImage', 'config', 'manifest.json', 'modules.builtin', 'vmlinux']
  assert.deepEqual((await readdir(output)).sort(), names)
  await rm(join(tree, '.config'))
  await assert.rejects(writeArtifact({ tree, output, origin }), { code: 'ENOENT' })
  assert.ok(!(await readdir(output)).includes('manifest.json'))
})

test('headers that are missing are named, and their package is in the line that installs them', async () => {
  const wanted = [
    { program: 'some headers', file: join(root, 'not/there.h'), package: 'libsome-dev', purpose: 'is a test' },
  ]
  await assert.rejects(ensurePackages({ wanted, env: process.env, install: false }), {
    message: 'some headers is not installed (is a test)',
    remedy: installLine(['libsome-dev']),
  })
  const present = [{ ...wanted[0], file: join(root, 'package.json') }]
  assert.deepEqual(await ensurePackages({ wanted: present, env: process.env, install: false }), {
    detail: 'some headers',
  })
  assert.ok(kernelRequirements.some(({ file }) => file !== undefined))
})

test('the build explains itself, and refuses what it cannot count', () => {
  const run = (/** @type {string[]} */ ...args) =>
    spawnSync(process.execPath, [join(root, 'kernel/build.mjs'), ...args], { encoding: 'utf8' })
  const help = run('--help')
  assert.deepEqual([help.status, help.stdout.startsWith('usage: npm run kernel')], [0, true])
  assert.equal(run('--jobs', '0').status, 64)
})
