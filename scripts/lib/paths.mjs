/** Where the scripts find and put things. */
import { homedir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The checkout. */
export const root = fileURLToPath(new URL('../../', import.meta.url)).replace(/\/$/, '')

/** Where the guest programs are built to. */
export const nativeFolder = join(root, 'packages/bandsox/native')

/**
 * Outside the checkout: what is in it took minutes to build and is worth more than one checkout.
 *
 * @param {NodeJS.ProcessEnv} env
 */
export const cacheFolder = (env) => join(env.XDG_CACHE_HOME || join(env.HOME || homedir(), '.cache'), 'bandsox')

/**
 * @param {NodeJS.ProcessEnv} env
 * @param {boolean} isRoot
 */
export function storageFolder(env, isRoot) {
  if (env.BANDSOX_STORAGE) return env.BANDSOX_STORAGE
  if (isRoot) return '/var/lib/bandsox'
  return join(env.XDG_DATA_HOME || join(env.HOME || homedir(), '.local/share'), 'bandsox')
}
