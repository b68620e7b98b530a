/**
 * A client of Firecracker's API, with a method for each call that a manager needs.
 *
 * @see https://github.com/firecracker-microvm/firecracker/blob/main/src/firecracker/swagger/firecracker.yaml
 */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { z } from 'zod'
import {
  balloonSchema,
  balloonStatisticsSchema,
  instanceInfoSchema,
  machineConfigurationSchema,
  mmdsContentsSchema,
  versionSchema,
  vmConfigurationSchema,
} from './answers.js'
import { type ApiAnswer, ApiConnection } from './connection.js'
import { type ApiCall, FirecrackerFault, FirecrackerNoAnswer } from './fault.js'
import { Turns } from './turns.js'
import type {
  ActionType,
  Balloon,
  BalloonStatistics,
  BalloonStatisticsUpdate,
  BalloonUpdate,
  BootSource,
  Drive,
  DriveUpdate,
  Entropy,
  InstanceInfo,
  Logger,
  MachineConfiguration,
  Metrics,
  MmdsConfiguration,
  MmdsContents,
  NetworkInterface,
  NetworkInterfaceUpdate,
  ReportedVmConfiguration,
  Serial,
  SnapshotCreation,
  SnapshotLoad,
  VmState,
  Vsock,
} from './types.js'

/** Most calls take some milliseconds. */
const TIMEOUT_MS = 5_000
/** Kernel and initramfs are copied into the guest's memory, and huge pages found: 2.9 s were seen under emulation. */
const START_TIMEOUT_MS = 30_000
/** The whole memory is written to a file, at the speed of the disk; loading may read the device state from a slow one. */
const SNAPSHOT_TIMEOUT_MS = 300_000
/** Firecracker's answers stay far below; one whose guest has broken out might send anything. */
const MAX_ANSWER_BYTES = 64 * 1024
/** For what grows with the user's data, or with the number of devices. Firecracker itself takes 51,200 bytes by default. */
const MAX_LARGE_ANSWER_BYTES = 1024 * 1024

/** All in milliseconds, and from the moment at which the call's turn has come. */
export interface FirecrackerApiOptions {
  /** For each call but those below. Default 5 s. */
  timeoutMs?: number | undefined
  /** Default 30 s. */
  startTimeoutMs?: number | undefined
  /** For making and for loading snapshots. Default 300 s. */
  snapshotTimeoutMs?: number | undefined
}

export interface CallOptions {
  /** Whoever breaks off a change does not know whether it takes effect: Firecracker completes what it has begun. */
  signal?: AbortSignal | undefined
  /** Instead of the client's. */
  timeoutMs?: number | undefined
}

/**
 * Calls run one at a time, in the order in which they were made, over one connection that is kept while it is used.
 *
 * Each call throws {@link FirecrackerFault} when Firecracker refuses it, {@link FirecrackerNoAnswer} when there is no answer to go
 * by (both with the code `vmm-control`), `cancelled` when this client is closed, and `signal.reason`. Nothing is tried again,
 * except a GET whose connection Firecracker had closed while it was idle.
 */
export class FirecrackerApi {
  readonly #connection: ApiConnection
  readonly #turns = new Turns()
  /** Ends each call that waits or is under way. */
  readonly #stops = new Set<AbortController>()
  #closed: BandSoxError | undefined
  readonly #timeoutMs: number
  readonly #startTimeoutMs: number
  readonly #snapshotTimeoutMs: number

  /** @param socketPath Absolute host path, of any length. Nothing is connected before the first call. */
  constructor(socketPath: string, options: FirecrackerApiOptions = {}) {
    this.#connection = new ApiConnection(socketPath)
    this.#timeoutMs = options.timeoutMs ?? TIMEOUT_MS
    this.#startTimeoutMs = options.startTimeoutMs ?? START_TIMEOUT_MS
    this.#snapshotTimeoutMs = options.snapshotTimeoutMs ?? SNAPSHOT_TIMEOUT_MS
  }

  // Before the start.

  async putMachineConfig(machine: MachineConfiguration, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/machine-config', machine, options)
  }

  async putBootSource(bootSource: BootSource, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/boot-source', bootSource, options)
  }

  async putDrive(drive: Drive, options?: CallOptions): Promise<void> {
    await this.#change('PUT', `/drives/${encodeURIComponent(drive.drive_id)}`, drive, options)
  }

  async putNetworkInterface(networkInterface: NetworkInterface, options?: CallOptions): Promise<void> {
    const path = `/network-interfaces/${encodeURIComponent(networkInterface.iface_id)}`
    await this.#change('PUT', path, networkInterface, options)
  }

  /** Binds the socket. One that is refused takes away the one that was put before (seen with 1.17). */
  async putVsock(vsock: Vsock, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/vsock', vsock, options)
  }

  async putEntropy(entropy: Entropy = {}, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/entropy', entropy, options)
  }

  async putBalloon(balloon: Balloon, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/balloon', balloon, options)
  }

  /** Also before a snapshot is loaded. */
  async putSerial(serial: Serial, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/serial', serial, options)
  }

  /** Also before a snapshot is loaded. */
  async putLogger(logger: Logger, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/logger', logger, options)
  }

  /** Once; also before a snapshot is loaded. */
  async putMetrics(metrics: Metrics, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/metrics', metrics, options)
  }

  async putMmdsConfig(configuration: MmdsConfiguration, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/mmds/config', configuration, options)
  }

  async start(options?: CallOptions): Promise<void> {
    await this.#act('InstanceStart', { timeoutMs: this.#startTimeoutMs, ...given(options) })
  }

  /** With `resume_vm` it runs at once. A process that refuses it is to be replaced. */
  async loadSnapshot(snapshot: SnapshotLoad, options?: CallOptions): Promise<void> {
    const limit = { timeoutMs: this.#snapshotTimeoutMs, ...given(options) }
    await this.#change('PUT', '/snapshot/load', snapshot, limit)
  }

  // Before the start and after it.

  /** In place of all that was there. */
  async putMmds(contents: MmdsContents, options?: CallOptions): Promise<void> {
    await this.#change('PUT', '/mmds', contents, options)
  }

  /** Merges as RFC 7396 says: `null` takes a field away. */
  async patchMmds(contents: MmdsContents, options?: CallOptions): Promise<void> {
    await this.#change('PATCH', '/mmds', contents, options)
  }

  /** @returns Empty when nothing was put. */
  async getMmds(options?: CallOptions): Promise<MmdsContents> {
    return await this.#ask('/mmds', mmdsContentsSchema, options, { maxBytes: MAX_LARGE_ANSWER_BYTES, keepsNull: true })
  }

  async describe(options?: CallOptions): Promise<InstanceInfo> {
    return await this.#ask('/', instanceInfoSchema, options)
  }

  /** Such as `1.16.1`. */
  async version(options?: CallOptions): Promise<string> {
    return (await this.#ask('/version', versionSchema, options)).firecracker_version
  }

  async machineConfig(options?: CallOptions): Promise<MachineConfiguration> {
    return await this.#ask('/machine-config', machineConfigurationSchema, options)
  }

  async vmConfig(options?: CallOptions): Promise<ReportedVmConfiguration> {
    return await this.#ask('/vm/config', vmConfigurationSchema, options, { maxBytes: MAX_LARGE_ANSWER_BYTES })
  }

  async balloon(options?: CallOptions): Promise<Balloon> {
    return await this.#ask('/balloon', balloonSchema, options)
  }

  // After the start.

  /** Also when it is paused already. */
  async pause(options?: CallOptions): Promise<void> {
    await this.#setState('Paused', options)
  }

  /** Also when it runs already. */
  async resume(options?: CallOptions): Promise<void> {
    await this.#setState('Resumed', options)
  }

  /** Of a machine that is paused; it stays so. Vsock connections do not survive it, and hosts are not told. */
  async createSnapshot(snapshot: SnapshotCreation, options?: CallOptions): Promise<void> {
    const limit = { timeoutMs: this.#snapshotTimeoutMs, ...given(options) }
    await this.#change('PUT', '/snapshot/create', snapshot, limit)
  }

  /** Needs {@link putMetrics}. */
  async flushMetrics(options?: CallOptions): Promise<void> {
    await this.#act('FlushMetrics', options)
  }

  /** The guest's keyboard driver hears it, if it has one; whether it then ends is its own affair. x86_64 only. */
  async sendCtrlAltDel(options?: CallOptions): Promise<void> {
    await this.#act('SendCtrlAltDel', options)
  }

  async patchDrive(update: DriveUpdate, options?: CallOptions): Promise<void> {
    await this.#change('PATCH', `/drives/${encodeURIComponent(update.drive_id)}`, update, options)
  }

  async patchNetworkInterface(update: NetworkInterfaceUpdate, options?: CallOptions): Promise<void> {
    const path = `/network-interfaces/${encodeURIComponent(update.iface_id)}`
    await this.#change('PATCH', path, update, options)
  }

  async patchBalloon(update: BalloonUpdate, options?: CallOptions): Promise<void> {
    await this.#change('PATCH', '/balloon', update, options)
  }

  async patchBalloonStatistics(update: BalloonStatisticsUpdate, options?: CallOptions): Promise<void> {
    await this.#change('PATCH', '/balloon/statistics', update, options)
  }

  /** Refused without an interval in {@link putBalloon}. */
  async balloonStatistics(options?: CallOptions): Promise<BalloonStatistics> {
    return await this.#ask('/balloon/statistics', balloonStatisticsSchema, options)
  }

  /** Breaks off what is under way, and refuses what is asked for later, with `cancelled`. The machine is not touched. */
  async close(): Promise<void> {
    this.#closed ??= new BandSoxError('cancelled', "this client of Firecracker's API was closed")
    for (const stop of this.#stops) stop.abort(this.#closed)
    await this.#connection.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #act(action: ActionType, options: CallOptions | undefined): Promise<void> {
    await this.#change('PUT', '/actions', { action_type: action }, options)
  }

  async #setState(state: VmState, options: CallOptions | undefined): Promise<void> {
    await this.#change('PATCH', '/vm', { state }, options)
  }

  async #change(method: 'PUT' | 'PATCH', path: string, body: object, options: CallOptions | undefined): Promise<void> {
    const call = { method, path }
    const answer = await this.#exchange(call, JSON.stringify(body), MAX_ANSWER_BYTES, options)
    if (answer.status !== 204) throw this.#unexpected(call, `it has status ${answer.status}, not 204`)
  }

  /** @param shape.keepsNull Firecracker says `null` for what a machine does not have; our types leave that out. */
  async #ask<T>(
    path: string,
    schema: z.ZodType<T>,
    options: CallOptions | undefined,
    { maxBytes = MAX_ANSWER_BYTES, keepsNull = false } = {},
  ): Promise<T> {
    const call = { method: 'GET', path } as const
    const answer = await this.#exchange(call, undefined, maxBytes, options)
    if (answer.status !== 200) throw this.#unexpected(call, `it has status ${answer.status}, not 200`)
    let value: unknown
    try {
      value = JSON.parse(answer.body, keepsNull ? undefined : (_, each: unknown) => each ?? undefined)
    } catch (error) {
      throw this.#unexpected(call, `it is no JSON (${messageOf(error)})`, error)
    }
    const parsed = schema.safeParse(value)
    if (parsed.success) return parsed.data
    const [issue] = parsed.error.issues // the first of perhaps very many
    throw this.#unexpected(call, `it has another shape (${issue?.message} at ${issue?.path.join('.')})`)
  }

  /** @returns An answer that is no refusal. */
  async #exchange(
    call: ApiCall,
    body: string | undefined,
    maxBytes: number,
    { signal, timeoutMs = this.#timeoutMs }: CallOptions = {},
  ): Promise<ApiAnswer> {
    if (this.#closed !== undefined) throw this.#closed
    signal?.throwIfAborted()
    const stop = new AbortController()
    const onAbort = () => stop.abort(signal?.reason)
    signal?.addEventListener('abort', onAbort, { once: true })
    this.#stops.add(stop)
    let timer: NodeJS.Timeout | undefined
    try {
      return await this.#turns.take(async () => {
        const onTimeout = () => stop.abort(new FirecrackerNoAnswer('silent', call, `none came within ${timeoutMs} ms`))
        timer = setTimeout(onTimeout, timeoutMs)
        const answer = await this.#connection.send(call, body, maxBytes, stop.signal)
        if (answer.status >= 400) throw new FirecrackerFault(call, answer.status, answer.body)
        return answer
      }, stop.signal)
    } finally {
      clearTimeout(timer)
      this.#stops.delete(stop)
      signal?.removeEventListener('abort', onAbort)
    }
  }

  #unexpected(call: ApiCall, why: string, cause?: unknown): FirecrackerNoAnswer {
    return new FirecrackerNoAnswer('unintelligible', call, why, { cause })
  }
}

/** What is `undefined` in options does not hide a default. */
function given(options: CallOptions = {}): CallOptions {
  const { timeoutMs, ...others } = options
  return { ...others, ...(timeoutMs !== undefined && { timeoutMs }) }
}
