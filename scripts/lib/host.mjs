/** Prepares guest kernel, base image and disk with the built product. */
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { findPrivilege, refreshLists, refreshMissingLists } from './packages.mjs'

/**
 * @typedef {object} Options
 * @property {string} root
 * @property {string} storage
 * @property {string} agentPath
 * @property {'distribution' | { kernel: string, modules?: string, sha256?: string } | undefined} kernelSource
 * @property {NodeJS.ProcessEnv} env
 * @property {boolean} install False: leave apt's lists alone.
 * @property {(text: string) => void} [activity]
 */

/**
 * @param {Options} options
 * @returns {Promise<import('./step.mjs').Outcome>}
 */
export async function prepareStorage({
  root,
  storage,
  agentPath,
  kernelSource,
  env,
  install,
  activity = () => undefined,
}) {
  const module = await import(pathToFileURL(join(root, 'packages/bandsox/dist/sandbox/prepare.js')).href)
  /** @type {string[]} */
  let details = []
  let changed = false
  const prepare = () =>
    module.prepareHost({
      storage,
      agentPath,
      kernelSource,
      report: (/** @type {{ kind: string, text: string, detail: string, made: boolean }} */ event) => {
        if (event.kind === 'activity') return activity(event.text)
        details.push(event.detail)
        changed ||= event.made
      },
    })
  try {
    await prepare()
  } catch (error) {
    const sudo = install && isAboutPackageLists(error) ? await findPrivilege(env) : undefined
    if (sudo === undefined) throw error
    activity('apt-get update')
    if (!(await refreshMissingLists(sudo, env))) await refreshLists(sudo, env)
    details = []
    await prepare()
  }
  return { detail: `${storage}: ${details.join('; ')}`, changed }
}

/**
 * apt knows the package not at all, or under a version that the mirror has replaced.
 *
 * @param {unknown} error
 */
const isAboutPackageLists = (error) =>
  error instanceof Error && 'hint' in error && typeof error.hint === 'string' && error.hint.includes('apt-get update')
