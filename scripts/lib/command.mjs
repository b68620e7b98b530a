/** Runs host commands for the scripts: arguments as a list, output collected. */
import { spawn } from 'node:child_process'
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { StepError } from './step.mjs'

/** @typedef {{ code: number | null, stdout: string, stderr: string }} Result */

/**
 * Runs a command to its end.
 *
 * @param {string[]} argv
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv }} [options]
 * @returns {Promise<Result>} `code` is null when a signal ended it.
 * @throws {StepError} When it cannot be started.
 */
export function tryCommand([program = '', ...args], { cwd, env } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
    let stdout = ''
    let stderr = ''
    child.stdout.setEncoding('utf8').on('data', (text) => {
      stdout += text
    })
    child.stderr.setEncoding('utf8').on('data', (text) => {
      stderr += text
    })
    child.once('error', (cause) => reject(new StepError(`cannot start ${program}: ${cause.message}`, { cause })))
    child.once('close', (code) => resolve({ code, stdout, stderr }))
  })
}

/**
 * Runs a command that must succeed.
 *
 * @param {string[]} argv
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv }} [options]
 * @throws {StepError} With the end of what it printed.
 */
export async function command(argv, options) {
  const result = await tryCommand(argv, options)
  if (result.code === 0) return result
  const said = `${result.stdout}\n${result.stderr}`.trim().split('\n').slice(-8).join('\n')
  throw new StepError(`${argv.slice(0, 3).join(' ')} … exited with ${result.code}: ${said}`)
}

/**
 * @param {string} program
 * @param {NodeJS.ProcessEnv} env
 * @returns {Promise<string | undefined>} Path of an executable on `PATH`.
 */
export async function findProgram(program, env) {
  for (const folder of (env.PATH ?? '').split(delimiter).filter((each) => each !== '')) {
    const path = join(folder, program)
    if (await isExecutable(path)) return path
  }
  return undefined
}

/** @param {string} path */
export async function isExecutable(path) {
  try {
    await access(path, constants.X_OK)
    return true
  } catch {
    return false // whatever the reason, it cannot be run
  }
}
