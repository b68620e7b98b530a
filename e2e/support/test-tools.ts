/** Other people's tools, with which tests make and serve images: which are missing, and how they are run. */
import { accessSync, constants } from 'node:fs'
import path from 'node:path'
import { runCommand } from 'bandsox/internal/process/run.js'

/** A tool that takes longer hangs; the longest installs Debian in half a minute. */
const TOOL_TIMEOUT_MS = 180_000

/** Debian keeps some in folders that are not in the PATH of ordinary users. */
const toolEnv: NodeJS.ProcessEnv = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` }

/** The list that scripts/test.mjs installs from; the scripts are no TypeScript project that could be referred to. */
const { testRequirements } = (await import(new URL('../../../scripts/lib/packages.mjs', import.meta.url).href)) as {
  testRequirements: readonly { program: string; package: string }[]
}

/** For `{ skip: missingTools() }`: a sentence on what the test images need and is not there, or false. */
export function missingTools(): string | false {
  if (process.getuid?.() !== 0) return 'test images hold files of many owners: they are made and unpacked by root only'
  const missing = testRequirements.filter(({ program }) => !isInstalled(program))
  if (missing.length === 0) return false
  const programs = missing.map(({ program }) => program).join(', ')
  return `not installed: ${programs}; to install: apt-get install ${missing.map((each) => each.package).join(' ')}`
}

/**
 * Runs a tool to its end and returns what it printed on standard output.
 *
 * @param options `env`: what it gets besides our own environment.
 */
export async function runTool(argv: readonly string[], options: { env?: NodeJS.ProcessEnv } = {}): Promise<string> {
  const env = { ...toolEnv, ...options.env }
  return (await runCommand(argv, { env, timeoutMs: TOOL_TIMEOUT_MS })).stdout
}

function isInstalled(program: string): boolean {
  return (toolEnv['PATH'] ?? '').split(':').some((folder) => {
    try {
      accessSync(path.join(folder, program), constants.X_OK)
      return true
    } catch {
      return false // whatever the reason, it cannot be run from there
    }
  })
}
