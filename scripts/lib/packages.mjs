/** Checks the programs that BandSox runs on the host and installs the packages of those that are missing. */
import { access, readdir } from 'node:fs/promises'
import { command, findProgram, tryCommand } from './command.mjs'
import { StepError } from './step.mjs'
import { findVersion, isAtLeast } from './version.mjs'

/**
 * @typedef {object} Requirement
 * @property {string} program Its name, or, with `file`, what to call that.
 * @property {string} [file] Stands for the package instead of a program: one that holds headers has none.
 * @property {string} package Its name in Debian and Ubuntu.
 * @property {string} purpose
 * @property {string[]} [versionArgs] Arguments that make it print its version; needed with `minVersion`.
 * @property {string} [minVersion]
 */

/** @type {Requirement[]} */
export const requirements = [
  {
    program: 'qemu-system-x86_64',
    package: 'qemu-system-x86',
    purpose: 'runs the virtual machines',
    versionArgs: ['--version'],
    minVersion: '7.2', // microvm with ACPI, netdev stream, migration as we use it; earlier ones were never tried
  },
  {
    program: 'sqfstar',
    package: 'squashfs-tools',
    purpose: 'builds images',
    versionArgs: ['-version'],
    minVersion: '4.5', // the first with sqfstar
  },
  { program: 'mkfs.ext4', package: 'e2fsprogs', purpose: 'formats disks' },
  { program: 'lz4', package: 'lz4', purpose: 'unpacks the guest kernel' },
  { program: 'zstd', package: 'zstd', purpose: 'unpacks the guest kernel' },
  { program: 'xz', package: 'xz-utils', purpose: 'unpacks the guest kernel' },
]

/** @type {Requirement} */
export const goRequirement = {
  program: 'go',
  package: 'golang-go',
  purpose: 'builds the guest agent',
  versionArgs: ['version'],
  minVersion: '1.19', // guest/go.mod
}

/**
 * What makes, serves and unpacks the images that end-to-end tests pull; BandSox itself needs none of it.
 *
 * @type {Requirement[]}
 */
export const testRequirements = [
  { program: 'docker-registry', package: 'docker-registry', purpose: 'is the registry that tests pull from' },
  { program: 'skopeo', package: 'skopeo', purpose: 'pushes test images' },
  { program: 'umoci', package: 'umoci', purpose: 'makes test images, and unpacks them for comparison' },
  { program: 'mmdebstrap', package: 'mmdebstrap', purpose: 'installs Debian into a test image' },
  { program: 'setcap', package: 'libcap2-bin', purpose: 'gives a file of a test image its capabilities' },
  { program: 'setfattr', package: 'attr', purpose: 'gives files of a test image their attributes' },
]

/**
 * What checks what the command line generates: scripts for completion, and the manual. A list of its own, as tests of images do
 * without.
 *
 * @type {Requirement[]}
 */
export const commandLineTestRequirements = [
  { program: 'bash', package: 'bash', purpose: 'is a shell to complete in' },
  { program: 'zsh', package: 'zsh', purpose: 'is a shell to complete in' },
  { program: 'fish', package: 'fish', purpose: 'is a shell to complete in' },
  { program: 'groff', package: 'groff-base', purpose: 'reads the manual' },
]

/**
 * What `npm run kernel` builds a guest kernel with; BandSox itself needs none of it.
 *
 * @type {Requirement[]}
 */
export const kernelRequirements = [
  { program: 'gcc', package: 'gcc', purpose: 'compiles the kernel' },
  {
    program: 'C headers',
    file: '/usr/include/stdio.h',
    package: 'libc6-dev',
    purpose: 'compiles the tools of its build',
  },
  { program: 'libelf headers', file: '/usr/include/libelf.h', package: 'libelf-dev', purpose: 'checks its objects' },
  { program: 'make', package: 'make', purpose: 'runs its build' },
  { program: 'flex', package: 'flex', purpose: 'reads its configuration' },
  { program: 'bison', package: 'bison', purpose: 'reads its configuration' },
  { program: 'bc', package: 'bc', purpose: 'computes its constants' },
  { program: 'lz4', package: 'lz4', purpose: 'compresses it' },
  { program: 'xz', package: 'xz-utils', purpose: "unpacks Debian's source" },
  { program: 'bzip2', package: 'bzip2', purpose: "unpacks Ubuntu's source" },
]

const LISTS = '/var/lib/apt/lists'

/**
 * @typedef {object} Options
 * @property {Requirement[]} wanted
 * @property {NodeJS.ProcessEnv} env
 * @property {boolean} install False: only say what is missing.
 * @property {(text: string) => void} [activity]
 */

/**
 * Makes sure that the wanted programs are there.
 *
 * @param {Options} options
 * @returns {Promise<import('./step.mjs').Outcome>}
 * @throws {StepError} Naming each program that is missing or too old; its remedy is the one line to run.
 */
export async function ensurePackages({ wanted, env, install, activity = () => undefined }) {
  const before = await inspect(wanted, env)
  if (before.lacking.length === 0) return { detail: before.present.join(', ') }
  const packages = before.lacking.map(({ requirement }) => requirement.package)
  const sudo = install ? await findPrivilege(env) : undefined
  if (sudo === undefined) {
    throw new StepError(before.lacking.map(({ sentence }) => sentence).join('; '), { remedy: installLine(packages) })
  }
  activity(`installing ${packages.join(' ')}`)
  await installPackages(packages, sudo, env)
  const after = await inspect(wanted, env)
  if (after.lacking.length > 0) {
    const remedy = `install a newer version by hand: this distribution's packages ${packages.join(' ')} do not suffice`
    throw new StepError(after.lacking.map(({ sentence }) => sentence).join('; '), { remedy })
  }
  return { detail: `installed ${packages.join(' ')}`, changed: true }
}

/** @param {string[]} packages */
export const installLine = (packages) =>
  `sudo apt-get update && sudo apt-get install --yes --no-install-recommends ${packages.join(' ')}`

/**
 * @param {Requirement[]} wanted
 * @param {NodeJS.ProcessEnv} env
 */
async function inspect(wanted, env) {
  // Debian keeps mkfs in a folder that is not in the PATH of ordinary users.
  const search = { ...env, PATH: `${env.PATH ?? ''}:/usr/sbin:/sbin` }
  /** @type {string[]} */
  const present = []
  /** @type {{ requirement: Requirement, sentence: string }[]} */
  const lacking = []
  for (const requirement of wanted) {
    const { program, file, purpose, minVersion } = requirement
    const path = file === undefined ? await findProgram(program, search) : await whereReadable(file)
    if (path === undefined) {
      lacking.push({ requirement, sentence: `${program} is not installed (${purpose})` })
      continue
    }
    const version = minVersion === undefined ? undefined : await versionOf(path, requirement)
    if (version !== undefined && minVersion !== undefined && !isAtLeast(version, minVersion)) {
      lacking.push({
        requirement,
        sentence: `${program} ${version} is too old (${purpose}): ${minVersion} or later is needed`,
      })
      continue
    }
    present.push(version === undefined ? program : `${program} ${version}`)
  }
  return { present, lacking }
}

/** @param {string} path */
async function whereReadable(path) {
  try {
    await access(path)
    return path
  } catch {
    return undefined // whatever the reason, it is of no use
  }
}

/**
 * @param {string} path
 * @param {Requirement} requirement
 */
async function versionOf(path, { versionArgs = [] }) {
  // Some print their version and exit with 1.
  const { stdout, stderr } = await tryCommand([path, ...versionArgs])
  return findVersion(`${stdout}${stderr}`) ?? '0'
}

/**
 * @param {NodeJS.ProcessEnv} env
 * @returns {Promise<string[] | undefined>} What to put before a command that needs root; `undefined` where root is out of reach.
 */
export async function findPrivilege(env) {
  if (process.getuid?.() === 0) return []
  if ((await findProgram('sudo', env)) === undefined) return undefined
  const { code } = await tryCommand(['sudo', '-n', 'true'], { env })
  return code === 0 ? ['sudo', '-n'] : undefined
}

/**
 * @param {string[]} packages
 * @param {string[]} sudo
 * @param {NodeJS.ProcessEnv} env
 */
async function installPackages(packages, sudo, env) {
  const install = [
    ...[...sudo, 'env', 'DEBIAN_FRONTEND=noninteractive'],
    ...['apt-get', '-q', '-o', 'DPkg::Lock::Timeout=120', 'install', '--yes', '--no-install-recommends', ...packages],
  ]
  const isFresh = await refreshMissingLists(sudo, env)
  const first = await tryCommand(install, { env })
  if (first.code === 0) return
  // Old lists name files that the mirror has replaced since.
  if (!isFresh) await refreshLists(sudo, env)
  await command(install, { env })
}

/**
 * A fresh container has no package lists.
 *
 * @param {string[]} sudo
 * @param {NodeJS.ProcessEnv} env
 * @returns {Promise<boolean>} Whether they were fetched.
 */
export async function refreshMissingLists(sudo, env) {
  const names = await readdir(LISTS).catch(() => [])
  if (names.some((name) => name.includes('_Packages'))) return false
  await refreshLists(sudo, env)
  return true
}

/**
 * @param {string[]} sudo
 * @param {NodeJS.ProcessEnv} env
 */
export const refreshLists = (sudo, env) => command([...sudo, 'apt-get', '-q', 'update'], { env })
