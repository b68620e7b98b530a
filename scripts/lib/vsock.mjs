/** Finds a vsock backend for QEMU: the kernel's, else the program vhost-device-vsock, built once when it is nowhere. */
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { command, findProgram, isExecutable, tryCommand } from './command.mjs'
import { StepError } from './step.mjs'
import { findVersion, isAtLeast } from './version.mjs'

const PROGRAM = 'vhost-device-vsock'
const VERSION = '0.3.0'
/** The highest rust-version among its locked dependencies; it names none itself. */
const MIN_CARGO = '1.74'
const KERNEL_DEVICE = '/dev/vhost-vsock'

/**
 * @typedef {object} Options
 * @property {NodeJS.ProcessEnv} env
 * @property {string} cache
 * @property {boolean} install False: build nothing.
 * @property {string} [kernelDevice] Default: /dev/vhost-vsock.
 * @property {(text: string) => void} [activity]
 */

/**
 * Where the program is kept that is built here.
 *
 * @param {string} cache
 */
export const vsockFolder = (cache) => join(cache, `${PROGRAM}-${VERSION}`)

/**
 * @param {Options} options
 * @returns {Promise<import('./step.mjs').Outcome>} Lacking when there is no backend: sandboxes then use the serial link.
 */
export async function ensureVsock({ env, cache, install, kernelDevice = KERNEL_DEVICE, activity = () => undefined }) {
  if (await hasKernelBackend(kernelDevice, env)) return { detail: `kernel (${kernelDevice})` }
  const built = join(vsockFolder(cache), 'bin', PROGRAM)
  const found = (await findProgram(PROGRAM, env)) ?? ((await isExecutable(built)) ? built : undefined)
  if (found !== undefined) return { detail: found }
  const cargo = await cargoVersion(env)
  if (cargo === undefined) return lacking('there is no cargo to build it with')
  if (!isAtLeast(cargo, MIN_CARGO))
    return lacking(`cargo ${cargo} is too old to build it: ${MIN_CARGO} or later is needed`)
  if (!install) return lacking('building it was declined')
  activity(`building ${PROGRAM} ${VERSION} once (some minutes)`)
  try {
    await command(['cargo', 'install', PROGRAM, '--version', VERSION, '--locked', '--root', vsockFolder(cache)], {
      env,
    })
  } catch (error) {
    if (!(error instanceof StepError)) throw error
    return lacking(`it cannot be built: ${error.message.split('\n').at(-1)}`)
  }
  return { detail: `built ${built}`, changed: true }
}

/**
 * @param {string} why
 * @returns {import('./step.mjs').Outcome}
 */
const lacking = (why) => ({
  detail: 'none',
  lacking: `no vsock backend: ${KERNEL_DEVICE} cannot be opened, ${PROGRAM} is not installed, and ${why}; sandboxes use the serial link`,
  remedy: `sudo modprobe vhost_vsock, or install Rust ${MIN_CARGO} or later and run this again`,
})

/**
 * @param {string} device
 * @param {NodeJS.ProcessEnv} env
 */
async function hasKernelBackend(device, env) {
  if (canOpen(device)) return true
  if (process.getuid?.() !== 0 || (await findProgram('modprobe', env)) === undefined) return false
  // Fails where the kernel has no such module, as in most containers: then it is not there, and that is all.
  await tryCommand(['modprobe', 'vhost_vsock'], { env })
  return canOpen(device)
}

/** @param {string} device */
function canOpen(device) {
  try {
    closeSync(openSync(device, 'r+'))
    return true
  } catch {
    return false // absent, or not ours to open: the same to us
  }
}

/** @param {NodeJS.ProcessEnv} env */
async function cargoVersion(env) {
  if ((await findProgram('cargo', env)) === undefined) return undefined
  const { stdout } = await tryCommand(['cargo', '--version'], { env })
  return findVersion(stdout)
}
