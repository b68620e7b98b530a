/** The manager's side of the shim: starts it, talks to it, reads what it left. The contract is guest/SHIM.md. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import type { Socket } from 'node:net'
import path from 'node:path'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { z } from 'zod'
import { within } from './deadline.js'
import { isAlive, type ProcessIdentity } from './identity.js'
import { readJsonFile, writePassingJsonFile } from './json-file.js'
import { lines } from './lines.js'
import { connectUnixSocket } from './unix-socket.js'

/** What the shim is told; see SHIM.md for each field. */
export interface ShimConfig {
  version: 1
  sandbox: string
  vmm: {
    argv: string[]
    env: Record<string, string>
    uid?: number
    gid?: number
    groups?: number[]
    maxFiles: number
    maxProcesses?: number
    folder?: string
    newPidNamespace?: boolean
    readOnly?: string
  }
  files: ({ listen: string } | { open: string } | { read: string })[]
  console: { log: string; maxBytes: number }
  vsock?:
    | { kind: 'daemon'; socket: string; argv: string[]; waitFor: string; daemonSocket: string; shut?: boolean }
    | { kind: 'kernel'; socket: string; cid: number }
    | { kind: 'vmm'; socket: string; vmmSocket: string }
  serial?: { kind: 'port'; socket: string; line: string } | { kind: 'uart'; socket: string; awake?: boolean }
  monitor?: { kind: 'qmp' | 'firecracker'; socket: string }
  outputs?: { fifo: string; log: string; uid?: number }[]
  cgroup?: { folder: string; settings: Record<string, string> }
  remove: string[]
  removeFolders?: string[]
}

/**
 * In the environment of every process that we start for a sandbox, with the sandbox's id: together with the working folder it tells
 * them from the processes of others.
 */
export const SANDBOX_MARK = 'BANDSOX_SANDBOX'

export const CONSOLE_LOG = 'console.log'
const MACHINE_FILE = 'machine.json'
export const VMM_LOG = 'vmm.log'
const CONSOLE_LOG_BYTES = 1_048_576
export const consoleConfig = { log: CONSOLE_LOG, maxBytes: CONSOLE_LOG_BYTES }

/** The shim answers from memory; a longer wait means that it is not there in earnest. */
const ANSWER_TIMEOUT_MS = 10_000
const MAX_LINE_BYTES = 65_536
/** A vsock daemon has 5 s to start, the rest is quick even on a busy host. */
const START_TIMEOUT_MS = 20_000

const identitySchema = z.object({ pid: z.number().int().positive(), startTime: z.number().int().nonnegative() })
const runSchema = z.object({
  shim: identitySchema,
  vmm: identitySchema,
  vsock: identitySchema.optional(),
  startedAt: z.string(),
  // Not in the files of earlier shims.
  bootId: z.string().optional(),
  pidNamespace: z.number().optional(),
})
const machineStatusSchema = z.object({
  status: z.enum([
    'starting',
    'running',
    'paused',
    'suspended',
    'io-error',
    'guest-panicked',
    'internal-error',
    'shutdown',
  ]),
  since: z.string(),
  reason: z.string().optional(),
})
const exitSchema = z.object({
  code: z.number().int().optional(),
  signal: z.string().optional(),
  unknown: z.boolean().optional(),
  at: z.string(),
  shutdown: z.string().optional(),
})
/** The shim's that are ours as well; any other is a failure of the VMM. */
const ownCodes = ['cid-in-use', 'host-unsupported'] as const
const startReply = z.union([
  z.object({ event: z.literal('started'), vmm: identitySchema }),
  z.object({ event: z.literal('failed'), code: z.string(), message: z.string() }),
])
const count = z.number().int().nonnegative()
const traffic = { open: count, opened: count, toGuestBytes: count, fromGuestBytes: count }
const linksSchema = z.object({
  vsock: z
    .object({ kind: z.enum(['daemon', 'kernel', 'vmm']), state: z.enum(['running', 'dead']), ...traffic })
    .nullable(),
  serial: z
    .object({
      kind: z.enum(['port', 'uart']),
      state: z.enum(['up', 'connecting']),
      ...traffic,
      rttMs: z.number().nonnegative().nullable(),
      windowBytes: count,
      payloadBytes: count,
      framesSent: count,
      framesResent: count,
      framesDamaged: count,
    })
    .nullable(),
})
const controlEvent = z.discriminatedUnion('event', [
  z.object({ event: z.literal('status'), vmm: identitySchema, vsock: z.string() }),
  z.object({ event: z.literal('vsock-died') }),
  machineStatusSchema.extend({ event: z.literal('machine') }),
  z.object({ event: z.literal('signalled') }),
  z.object({ event: z.literal('link-held') }),
  z.object({ event: z.literal('link-freed') }),
  z.object({ event: z.literal('vsock-shut') }),
  z.object({ event: z.literal('vsock-opened') }),
  z.object({ event: z.literal('looked') }),
  linksSchema.extend({ event: z.literal('links') }),
  z.object({ event: z.literal('error'), code: z.string(), message: z.string() }),
  exitSchema.extend({ event: z.literal('exited') }),
])

/** Events that answer a request; the others come by themselves. */
const ANSWERS: readonly string[] = [
  'signalled',
  'link-held',
  'link-freed',
  'vsock-shut',
  'vsock-opened',
  'looked',
  'links',
  'error',
] satisfies z.infer<typeof controlEvent>['event'][]

export type VmmExit = z.infer<typeof exitSchema>
export type ShimRun = z.infer<typeof runSchema>
/** The ways to a guest as its shim has them, null for one that the VM lacks; SHIM.md, shim.sock. */
export type LinkStatistics = z.infer<typeof linksSchema>
/** What a machine does now, whoever told it to; SHIM.md, machine.json. */
export type MachineStatus = z.infer<typeof machineStatusSchema>

export function describeExit(exit: VmmExit): string {
  if (exit.signal !== undefined) return `the VMM was ended by ${exit.signal} at ${exit.at}`
  if (exit.shutdown === 'guest-reset') return `the guest panicked, or rebooted itself, at ${exit.at}`
  if (exit.code !== undefined) return `the VMM exited with ${exit.code} at ${exit.at}`
  return `the VMM ended at ${exit.at}`
}

/**
 * Whether the machine goes on, as far as its shim has said. Asked before each command: a read of one block from memory takes less
 * than the way through the thread pool.
 */
export function standsStill(directory: string): boolean {
  try {
    const status = machineStatusSchema.safeParse(JSON.parse(readFileSync(path.join(directory, MACHINE_FILE), 'utf8')))
    return status.success && status.data.status !== 'running' && status.data.status !== 'starting'
  } catch {
    return false // not there (yet, or any more), or just being replaced: the operation itself will tell
  }
}

/**
 * Starts a shim, and by it the VMM.
 *
 * @returns The VMM's identity, as soon as it runs; what becomes of it is told by `ShimClient`.
 * @throws `vmm-failed` with what the VMM or the vsock daemon printed; `cid-in-use` for a CID that the kernel refuses.
 */
export async function startShim(shimPath: string, directory: string, config: ShimConfig): Promise<ProcessIdentity> {
  // No VM outlives a loss of power, and each start writes it anew.
  writePassingJsonFile(path.join(directory, 'shim.json'), config)
  return await launch(shimPath, directory, 'run', config.sandbox)
}

/** Puts a new shim beside a VMM whose shim died. @throws `vmm-failed` when the VMM is gone as well; all is then cleaned up. */
export async function adoptVmm(shimPath: string, directory: string): Promise<ProcessIdentity> {
  const config = await readShimConfig(directory)
  return await launch(shimPath, directory, 'adopt', config?.sandbox)
}

const keptConfigSchema = z.object({
  sandbox: z.string(),
  vmm: z.object({ argv: z.array(z.string()), uid: z.number().int().optional() }),
  vsock: z.object({ kind: z.enum(['daemon', 'kernel', 'vmm']) }).optional(),
  cgroup: z.object({ folder: z.string() }).optional(),
  monitor: z.object({ kind: z.enum(['qmp', 'firecracker']), socket: z.string() }).optional(),
})

/** What a later process needs of what the shim was told; undefined where none was. */
export async function readShimConfig(directory: string): Promise<z.infer<typeof keptConfigSchema> | undefined> {
  return await readJsonFile(path.join(directory, 'shim.json'), keptConfigSchema)
}

async function launch(
  shimPath: string,
  directory: string,
  mode: 'run' | 'adopt',
  sandbox: string | undefined,
): Promise<ProcessIdentity> {
  const child = spawn(shimPath, [mode], {
    cwd: directory,
    detached: true, // its own session: our terminal's end, or our own, is not the VM's
    env: sandbox === undefined ? {} : { [SANDBOX_MARK]: sandbox },
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  child.unref()
  const failed = once(child, 'error').then(([error]) => {
    throw new BandSoxError('host-missing', `cannot start the shim ${shimPath}: ${messageOf(error)}`, { cause: error })
  })
  const line = await within(Promise.race([firstLine(child.stdout), failed]), START_TIMEOUT_MS, () => {
    child.kill('SIGKILL') // a shim that has not told of its VM ends it when it sees that nobody listens, or never had it
    return new BandSoxError('vmm-failed', `the shim did not say within ${START_TIMEOUT_MS} ms what became of the VMM`)
  })
  const reply = startReply.safeParse(parseOrUndefined(line))
  if (!reply.success)
    throw new BandSoxError('vmm-failed', `the shim ended without a word${line === '' ? '' : `: ${line.slice(0, 500)}`}`)
  if (reply.data.event === 'failed') {
    const { code, message } = reply.data
    throw new BandSoxError(ownCodes.find((each) => each === code) ?? 'vmm-failed', message)
  }
  return reply.data.vmm
}

async function firstLine(stream: Readable): Promise<string> {
  for await (const line of lines(stream, MAX_LINE_BYTES)) return line
  return ''
}

function parseOrUndefined(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined // not JSON is one more shape that the schema refuses
  }
}

export interface ShimRecords {
  run: ShimRun | undefined
  exit: VmmExit | undefined
  vmmAlive: boolean
  shimAlive: boolean
  /** undefined when the VMM does not live, or is one that does not say. While no shim lives, it may be out of date. */
  status: MachineStatus | undefined
}

/**
 * What the shim wrote about the VMM, and whether that still is so. Its files are not synced: what a loss of power has left empty
 * counts as not written, as no process of that time lives any more.
 */
export async function readRun(directory: string): Promise<ShimRecords> {
  const run = await readIfWhole(path.join(directory, 'run.json'), runSchema)
  const readExit = async () => await readIfWhole(path.join(directory, 'exit.json'), exitSchema)
  const exitSoFar = await readExit()
  const wasAlive = run !== undefined && exitSoFar === undefined && (await isAlive(located(run.vmm, run)))
  const shimAlive = run !== undefined && (await isAlive(located(run.shim, run)))
  // It writes down the end last of all: one that has ended just now may have done so since.
  const exit = exitSoFar ?? (run !== undefined && !shimAlive ? await readExit() : undefined)
  const vmmAlive = wasAlive && exit === undefined
  const status = vmmAlive ? await readIfWhole(path.join(directory, MACHINE_FILE), machineStatusSchema) : undefined
  return { run, exit, vmmAlive, shimAlive, status }
}

/** A shim that has ended clears up in some ms, where nothing is in its way. */
const END_PATIENCE_MS = 5_000
const END_POLL_MS = 5

/** How the VMM of a directory ended, once its shim has ended as well; undefined when it lives, or nobody knows. */
export async function endOfRun(directory: string): Promise<VmmExit | undefined> {
  const deadline = performance.now() + END_PATIENCE_MS
  for (;;) {
    const { exit, vmmAlive, shimAlive } = await readRun(directory)
    if (!shimAlive || vmmAlive || performance.now() > deadline) return exit
    await delay(END_POLL_MS)
  }
}

/** A pid means something only in its boot and PID namespace: seen from another container, its process counts as living. */
export const located = (identity: ProcessIdentity, { bootId, pidNamespace }: ShimRun): ProcessIdentity => ({
  ...identity,
  bootId,
  pidNamespace,
})

async function readIfWhole<S extends z.ZodType>(file: string, schema: S): Promise<z.infer<S> | undefined> {
  try {
    return await readJsonFile(file, schema)
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'artifact-damaged') return undefined
    throw error
  }
}

/**
 * How the ways to a running guest do, since its shim began.
 *
 * @throws `vmm-failed` when no shim answers; `signal.reason`.
 */
export async function linkStatistics(directory: string, signal?: AbortSignal): Promise<LinkStatistics> {
  signal?.throwIfAborted()
  const client = await ShimClient.connect(directory)
  const abort = () => client.close()
  signal?.addEventListener('abort', abort, { once: true })
  try {
    return await client.links()
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', abort)
    client.close()
  }
}

/** One connection to a running shim. */
export class ShimClient {
  readonly #socket: Socket
  readonly #directory: string
  readonly #exited: Promise<VmmExit>
  #answers: ((event: z.infer<typeof controlEvent> | undefined) => void)[] = []
  /** The shim will say nothing more. */
  #isOver = false
  /** By us: then nobody waits for an end. */
  #isClosed = false

  private constructor(socket: Socket, directory: string) {
    this.#socket = socket
    this.#directory = directory
    this.#exited = this.#listen()
    this.#exited.catch(() => undefined) // whoever waits for the end sees it
  }

  /** @throws `vmm-failed` when no shim answers there. */
  static async connect(directory: string): Promise<ShimClient> {
    try {
      return new ShimClient(await connectUnixSocket(path.join(directory, 'shim.sock')), directory)
    } catch (error) {
      throw new BandSoxError('vmm-failed', `no shim answers in ${directory}: ${messageOf(error)}`, { cause: error })
    }
  }

  /** Sends a signal to the VMM; never to a process that took over its pid. A VMM that has ended already is fine. */
  async signal(name: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const event = await this.#ask({ op: 'signal', signal: name })
    if (event?.event === 'error')
      throw new BandSoxError('vmm-failed', `cannot send ${name} to the VMM: ${event.message}`)
  }

  /**
   * Ends the connections to a machine that is about to be stopped, and keeps new ones away until it goes on; or for a moment, if it
   * is not stopped. A shim of an earlier version does not know of this, and does without.
   */
  async holdLink(): Promise<void> {
    await this.#ask({ op: 'hold-link' })
  }

  /** Takes {@link holdLink} back: the machine was not stopped after all. */
  async freeLink(): Promise<void> {
    await this.#ask({ op: 'free-link' })
  }

  /**
   * Ends the connections by vsock, and keeps new ones away: its device is about to be unplugged.
   *
   * @throws `vmm-failed` when the shim cannot, or is of an earlier version, which does not know.
   */
  async shutVsock(): Promise<void> {
    await this.#changeVsock('shut-vsock')
  }

  /** Lets hosts connect by vsock: there is a device that the guest has in use. @throws `vmm-failed`. */
  async openVsock(): Promise<void> {
    await this.#changeVsock('open-vsock')
  }

  async #changeVsock(op: 'shut-vsock' | 'open-vsock'): Promise<void> {
    const event = await this.#ask({ op })
    if (event?.event === 'error') throw new BandSoxError('vmm-failed', `the shim does not ${op}: ${event.message}`)
  }

  /** Has the shim find out, and write down, what the machine does now. @throws `vmm-control` when the VMM does not say. */
  async look(): Promise<void> {
    const event = await this.#ask({ op: 'look' })
    if (event?.event === 'error')
      throw new BandSoxError('vmm-control', `the VMM does not say what its machine does: ${event.message}`)
  }

  /** @throws `vmm-failed` when the shim has ended, or is of an earlier version, which does not know. */
  async links(): Promise<LinkStatistics> {
    const event = await this.#ask({ op: 'links' })
    if (event?.event === 'links') return { vsock: event.vsock, serial: event.serial }
    const why = event?.event === 'error' ? event.message : 'it has ended'
    throw new BandSoxError('vmm-failed', `the shim does not tell of the links: ${why}`)
  }

  /** @returns undefined when the shim will say nothing more. */
  async #ask(request: object): Promise<z.infer<typeof controlEvent> | undefined> {
    if (this.#isOver) return undefined
    const answer = new Promise<z.infer<typeof controlEvent> | undefined>((resolve) => this.#answers.push(resolve))
    this.#socket.write(`${JSON.stringify(request)}\n`)
    return await within(
      answer,
      ANSWER_TIMEOUT_MS,
      () => new BandSoxError('vmm-failed', `the shim did not answer within ${ANSWER_TIMEOUT_MS} ms`),
    )
  }

  /** Resolves when the VMM has ended and the shim has cleaned up. @throws `vmm-failed` when the shim dies first. */
  exited(): Promise<VmmExit> {
    return this.#exited
  }

  /** @returns undefined when the VMM still runs after `timeoutMs`. */
  async exitedWithin(timeoutMs: number): Promise<VmmExit | undefined> {
    const limit = new Error('still running')
    try {
      return await within(this.#exited, timeoutMs, () => limit)
    } catch (error) {
      if (error === limit) return undefined
      throw error
    }
  }

  /** Lets the process end though this connection waits for the VMM's end. */
  unref(): void {
    this.#socket.unref()
  }

  close(): void {
    this.#isClosed = true
    this.#socket.destroy()
  }

  async #listen(): Promise<VmmExit> {
    try {
      for await (const line of lines(this.#socket, MAX_LINE_BYTES)) {
        const event = controlEvent.safeParse(parseOrUndefined(line))
        if (!event.success)
          throw new BandSoxError('vmm-failed', `the shim said something unknown: ${line.slice(0, 200)}`)
        if (event.data.event === 'exited') return event.data
        if (ANSWERS.includes(event.data.event)) this.#answers.shift()?.(event.data)
      }
    } catch (error) {
      // Both are ways in which the shim's end shows, the second when we were just writing to it.
      if (!isSystemError(error, 'ECONNRESET') && !isSystemError(error, 'EPIPE')) throw error
    } finally {
      this.#isOver = true
      for (const answer of this.#answers.splice(0)) answer(undefined)
    }
    // Who comes when it is just ending is not told any more; then it is written down.
    const exit = this.#isClosed ? undefined : await endOfRun(this.#directory)
    if (exit !== undefined) return exit
    throw new BandSoxError('vmm-failed', 'the shim ended without saying what became of the VMM')
  }
}
