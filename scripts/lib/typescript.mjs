/** Builds the TypeScript packages. */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { command } from './command.mjs'

const projects = ['packages/sdk', 'packages/bandsox']

/**
 * @param {{ root: string, env: NodeJS.ProcessEnv, activity?: (text: string) => void }} options
 * @returns {Promise<import('./step.mjs').Outcome>}
 */
export async function buildTypeScript({ root, env, activity = () => undefined }) {
  const before = await buildTimes(root)
  activity('tsc -b')
  await command([process.execPath, join(root, 'node_modules/typescript/bin/tsc'), '-b', ...projects], {
    cwd: root,
    env,
  })
  return { detail: projects.join(', '), changed: (await buildTimes(root)) !== before }
}

/** @param {string} root */
async function buildTimes(root) {
  const records = projects.map((project) => join(root, project, 'tsconfig.tsbuildinfo'))
  const times = await Promise.all(
    records.map((path) =>
      stat(path).then(
        ({ mtimeMs }) => mtimeMs,
        () => 0,
      ),
    ),
  )
  return times.join()
}
