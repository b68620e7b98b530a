/** Installs the packages of package-lock.json when node_modules holds something else. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { command } from './command.mjs'

/** @typedef {Record<string, { version?: string, integrity?: string, optional?: boolean, link?: boolean }>} Locked */

/**
 * @param {{ root: string, env: NodeJS.ProcessEnv, activity?: (text: string) => void }} options
 * @returns {Promise<import('./step.mjs').Outcome>}
 */
export async function ensureNodeModules({ root, env, activity = () => undefined }) {
  const wanted = await readLock(join(root, 'package-lock.json'))
  // npm's own record of what it has put there, whoever called it.
  const present = await readLock(join(root, 'node_modules/.package-lock.json'))
  const detail = `${Object.keys(wanted).length} packages as in package-lock.json`
  if (holds(present, wanted)) return { detail }
  activity('npm ci')
  await command(['npm', 'ci', '--no-audit', '--no-fund'], { cwd: root, env })
  return { detail, changed: true }
}

/**
 * @param {Locked} present
 * @param {Locked} wanted
 */
export function holds(present, wanted) {
  return Object.entries(wanted).every(([path, { version, integrity, optional, link }]) => {
    if (!path.startsWith('node_modules/') || link) return true // the workspaces themselves
    const found = present[path]
    if (found === undefined) return optional === true // for another platform
    return found.version === version && found.integrity === integrity
  })
}

/**
 * @param {string} path
 * @returns {Promise<Locked>} Empty when there is no such file.
 */
async function readLock(path) {
  try {
    return JSON.parse(await readFile(path, 'utf8')).packages ?? {}
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return {}
    throw error
  }
}
