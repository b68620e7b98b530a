/** The command `bandsox`, run as a user runs it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

export const cliPath = fileURLToPath(new URL('../../../packages/bandsox/dist/cli/main.js', import.meta.url))

export interface CliResult {
  status: number | null
  stdout: string
  stderr: string
}

export function startCli(storage: string, args: readonly string[]): ChildProcess {
  return spawn(process.execPath, [cliPath, '--storage', storage, ...args], { stdio: ['pipe', 'pipe', 'pipe'] })
}

export async function cli(storage: string, args: readonly string[], input?: string): Promise<CliResult> {
  const child = startCli(storage, args)
  child.stdin?.end(input ?? '')
  const output = { stdout: '', stderr: '' }
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (output.stdout += text))
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (output.stderr += text))
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  return { status, ...output }
}
