/** A program in QEMU's place, so that what is measured is the manager and the shim alone: guest/cmd/stand-in-vmm. */
import { execFile } from 'node:child_process'
import { chmod, copyFile, readFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import type { LocalConfig } from '../packages/bandsox/src/sandbox/local-bandsox.js'
import { temporaryFolder } from './host-file.js'
import { readConfig } from './internals.js'

const PROGRAM = 'stand-in-vmm'
const QEMU = 'qemu-system-x86_64'
const BEGAN_PATTERN = /^main began (\d+)$/m
const PATIENCE_MS = 10_000
const POLL_MS = 1

const run = promisify(execFile)

export interface StandIn extends AsyncDisposable {
  /** What it takes the place of. */
  name: string
  /** What a manager opens with to find it. */
  config: Pick<LocalConfig, 'searchPath' | 'vmm' | 'jailer' | 'kvm' | 'firecracker'>
  /** When it began with this VM, by {@link monotonicMs}: QEMU's its main, Firecracker's the machine. */
  began(directory: string, since: number): Promise<number>
  /** Milliseconds that this takes it by itself, from its exec. */
  startUpMs(): Promise<number>
}

/** For QEMU. */
export async function standInVmm(): Promise<StandIn> {
  const { shimPath, searchPath } = readConfig()
  // The VM's own user starts it, who need not reach into the checkout.
  const { folder, [Symbol.asyncDispose]: remove } = await temporaryFolder()
  await chmod(folder, 0o755)
  const program = path.join(folder, QEMU)
  await copyFile(path.join(path.dirname(shimPath), PROGRAM), program)
  return {
    name: 'QEMU',
    config: { searchPath: [folder, ...searchPath], vmm: 'qemu' },
    began: mainBegan,
    startUpMs: async () => Number((await run(program, ['start-up'])).stdout) / 1e6,
    [Symbol.asyncDispose]: remove,
  }
}

/** The clock that the stand-in tells the time by. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6

async function mainBegan(directory: string, since: number): Promise<number> {
  for (const deadline = performance.now() + PATIENCE_MS; performance.now() < deadline; await delay(POLL_MS)) {
    const text = await readFile(path.join(directory, 'console.log'), 'latin1').catch(() => '') // the shim makes it
    const [, ns] = BEGAN_PATTERN.exec(text) ?? []
    if (ns !== undefined && Number(ns) / 1e6 > since) return Number(ns) / 1e6
  }
  throw new Error(`the stand-in in ${directory} did not say that it began`)
}

const FIRECRACKER = 'stand-in-firecracker'

/** For Firecracker, whose machine starts by its configuration file; without a jail it is what the manager and the shim add. */
export async function standInFirecracker(jailer: 'on' | 'off'): Promise<StandIn> {
  const { shimPath, searchPath } = readConfig()
  const { folder, [Symbol.asyncDispose]: remove } = await temporaryFolder()
  await chmod(folder, 0o755)
  const at = (name: string) => path.join(folder, name)
  await copyFile(path.join(path.dirname(shimPath), FIRECRACKER), at('firecracker'))
  await copyFile(path.join(path.dirname(shimPath), 'stand-in-jailer'), at('jailer'))
  return {
    name: jailer === 'on' ? 'Firecracker, jailed' : 'Firecracker',
    config: {
      searchPath,
      firecracker: { program: at('firecracker'), jailer: at('jailer') },
      kvm: { usable: true, groups: [] },
      vmm: 'firecracker',
      jailer,
    },
    began: machineStarted,
    startUpMs: async () => {
      const began = monotonicMs()
      await run(at('firecracker'), ['--version'])
      return monotonicMs() - began
    },
    [Symbol.asyncDispose]: remove,
  }
}

async function machineStarted(directory: string, since: number): Promise<number> {
  for (const deadline = performance.now() + PATIENCE_MS; performance.now() < deadline; await delay(POLL_MS)) {
    const log = await readFile(path.join(directory, 'firecracker.log'), 'latin1').catch(() => '') // the shim makes it
    const startedAt =
      loggedAt(log, /Successfully started microvm/) - (performance.timeOrigin + performance.now()) + monotonicMs()
    if (startedAt > since) return startedAt
  }
  throw new Error(`the stand-in in ${directory} did not say that its machine has started`)
}

/** When Firecracker logged the last line of a kind, in milliseconds since 1970, to the microsecond; NaN when it did not. */
export function loggedAt(log: string, kind: RegExp): number {
  // A line begins with its time in UTC, to the nanosecond, of which Date.parse takes milliseconds: 2026-01-01T00:00:00.123456789
  const time = log.split('\n').findLast((line) => kind.test(line))
  return time === undefined
    ? Number.NaN
    : Date.parse(`${time.slice(0, 23)}Z`) + Number(time.slice(23, 26).padEnd(3, '0')) / 1e3
}
