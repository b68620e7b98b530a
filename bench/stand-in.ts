/** A program in QEMU's place, so that what is measured is the manager and the shim alone: guest/cmd/stand-in-vmm. */
import { execFile } from 'node:child_process'
import { chmod, copyFile, readFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { temporaryFolder } from './host-file.js'
import { readConfig } from './internals.js'

const PROGRAM = 'stand-in-vmm'
const QEMU = 'qemu-system-x86_64'
const BEGAN_PATTERN = /^main began (\d+)$/m
const PATIENCE_MS = 10_000
const POLL_MS = 1

const run = promisify(execFile)

export interface StandIn extends AsyncDisposable {
  /** The folders searched for programs, with the stand-in found as QEMU. */
  searchPath: readonly string[]
  /** Milliseconds from its exec to its main. */
  startUpMs(): Promise<number>
}

export async function standInVmm(): Promise<StandIn> {
  const { shimPath, searchPath } = readConfig()
  // The VM's own user starts it, who need not reach into the checkout.
  const { folder, [Symbol.asyncDispose]: remove } = await temporaryFolder()
  await chmod(folder, 0o755)
  const program = path.join(folder, QEMU)
  await copyFile(path.join(path.dirname(shimPath), PROGRAM), program)
  return {
    searchPath: [folder, ...searchPath],
    startUpMs: async () => Number((await run(program, ['start-up'])).stdout) / 1e6,
    [Symbol.asyncDispose]: remove,
  }
}

/** The clock that the stand-in tells the time by. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6

/** When the main of the stand-in in this VM's directory began, by {@link monotonicMs}. */
export async function mainBegan(directory: string, since: number): Promise<number> {
  for (const deadline = performance.now() + PATIENCE_MS; performance.now() < deadline; await delay(POLL_MS)) {
    const text = await readFile(path.join(directory, 'console.log'), 'latin1').catch(() => '') // the shim makes it
    const [, ns] = BEGAN_PATTERN.exec(text) ?? []
    if (ns !== undefined && Number(ns) / 1e6 > since) return Number(ns) / 1e6
  }
  throw new Error(`the stand-in in ${directory} did not say that it began`)
}
