/** A running Firecracker: its shim for the process, its API for the machine. */
import { randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import { copyFile, type FileHandle, open, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { readRun, readShimConfig } from '../../process/shim.js'
import type { LiveLimits } from '../limits.js'
import { attachShim, ShimMachine } from '../shim-machine.js'
import { requireRoom } from '../state-folder.js'
import type { Machine, MachineState, StateKind } from '../vmm.js'
import { FirecrackerApi } from './api/client.js'
import { FirecrackerNoAnswer } from './api/fault.js'
import { waitForApi } from './api/ready.js'
import type { SnapshotLoad } from './api/types.js'
import { folderFiles, limitedDrives, METRICS_LOG } from './configuration.js'
import { lastMetrics } from './metrics.js'
import { losesVsockAtPause, versionNumber } from './version.js'

/** Its end is noticed at once; a host on which many start at the same time is only slow. */
const API_PATIENCE_MS = 60_000
/** A guest gives some hundred MiB in a second; its statistics are a second old. */
const BALLOON_PATIENCE_MS = 5_000
const BALLOON_POLL_MS = 100
/** It answers one after the other, and a snapshot of a large machine takes its time. The shim itself waits for 5 s. */
const BUSY_PATIENCE_MS = 10_000
const BUSY_POLL_MS = 50
/** Its line of metrics goes through a FIFO and the shim. */
const METRICS_PATIENCE_MS = 2_000
const METRICS_POLL_MS = 5
/** No folder of this name is in a VMM's. */
const NOWHERE = 'nowhere/state'
/** Machines of several users are loaded from it, by links of their own: the folder is what keeps it from others. */
const ALL_READ = 0o444

/** Takes hold of the machine in `directory`; a shim that died is replaced first. @throws `vmm-failed`. */
export async function attachMachine(shimPath: string, directory: string): Promise<FirecrackerMachine> {
  const shim = await attachShim(shimPath, directory)
  const socket = (await readShimConfig(directory))?.monitor?.socket
  if (socket === undefined) {
    shim.close()
    throw new BandSoxError('vmm-failed', `the machine in ${directory} has no API: its shim.json names none`)
  }
  return new FirecrackerMachine(shim, directory, socket)
}

export class FirecrackerMachine extends ShimMachine implements Machine {
  /** It takes no notice of a power-off. */
  readonly powerOffMode = 'reboot'
  readonly #apiSocket: string
  #api: FirecrackerApi | undefined

  /** @param apiSocket Relative to `directory`. */
  constructor(shim: ConstructorParameters<typeof ShimMachine>[0], directory: string, apiSocket: string) {
    super(shim, directory)
    this.#apiSocket = this.pathOf(apiSocket)
  }

  get #firecracker(): FirecrackerApi {
    this.#api ??= new FirecrackerApi(this.#apiSocket)
    return this.#api
  }

  async pause(): Promise<void> {
    await this.quietly(async () => {
      await this.#change(() => this.#firecracker.pause(), 'paused')
    })
    // It is paused, whatever becomes of this: at the worst vsock is lost, and all goes on over the serial line.
    await this.#keepVsock().catch(() => undefined)
  }

  async resume(): Promise<void> {
    await this.#change(() => this.#firecracker.resume(), 'running')
  }

  /**
   * Changes what the machine does, and has the shim find out. A Firecracker that does not answer in time may have done it all the same:
   * then what counts is what it says that its machine does.
   */
  async #change(change: () => Promise<void>, wanted: 'paused' | 'running'): Promise<void> {
    let failure: unknown
    try {
      await change()
    } catch (error) {
      if (!(error instanceof FirecrackerNoAnswer && error.mayHaveTakenEffect)) throw error
      failure = error
    }
    await this.#look(BUSY_PATIENCE_MS).catch((error: unknown) => {
      throw failure ?? error
    })
    if (failure !== undefined && (await readRun(this.directory)).status?.status !== wanted) throw failure
  }

  /** Has the shim find out what the machine does, of a Firecracker that may be too busy to say so at once. */
  async #look(patienceMs: number): Promise<void> {
    const deadline = performance.now() + patienceMs
    for (;;) {
      try {
        return await this.shim.look()
      } catch (error) {
        if (performance.now() > deadline || (await this.exitedWithin(0)) !== undefined) throw error
        await delay(BUSY_POLL_MS)
      }
    }
  }

  /**
   * Has a Firecracker that needs it begin to save a state, which tells the guest's vsock of a reset, into a folder that is not there: it
   * fails before it has written anything. The links have no connection that could suffer.
   */
  async #keepVsock(): Promise<void> {
    const number = versionNumber(await this.#firecracker.version())
    if (number === undefined || !losesVsockAtPause(number)) return
    await this.#firecracker.createSnapshot({ snapshot_path: NOWHERE, mem_file_path: NOWHERE })
  }

  async powerDown(): Promise<void> {
    await this.#firecracker.sendCtrlAltDel()
  }

  async setLimits(limits: LiveLimits): Promise<void> {
    await this.setCpus(limits.cpus)
    await this.limitDisks(limits)
  }

  async limitDisks(limits: LiveLimits): Promise<void> {
    for (const drive of limitedDrives(limits)) await this.#firecracker.patchDrive(drive)
  }

  async setMemory(memoryMib: number): Promise<number> {
    const api = this.#firecracker
    const { mem_size_mib: whole } = await api.machineConfig()
    const wanted = Math.min(memoryMib, whole)
    await api.patchBalloon({ amount_mib: whole - wanted })
    const memoryNow = async () => Math.max(0, whole - (await api.balloonStatistics()).actual_mib)
    const deadline = performance.now() + BALLOON_PATIENCE_MS
    let now = await memoryNow()
    while (now !== wanted && performance.now() < deadline) {
      await delay(BALLOON_POLL_MS)
      now = await memoryNow()
    }
    return now
  }

  async metrics(): Promise<Record<string, unknown>> {
    const log = this.pathOf(METRICS_LOG)
    const before = await lastMetrics(log)
    await this.#firecracker.flushMetrics()
    const deadline = performance.now() + METRICS_PATIENCE_MS
    for (;;) {
      const now = await lastMetrics(log)
      if (now !== undefined && now.at !== before?.at) return now.metrics
      if (performance.now() > deadline)
        throw new BandSoxError('vmm-control', `Firecracker wrote no metrics within ${METRICS_PATIENCE_MS} ms`)
      await delay(METRICS_POLL_MS)
    }
  }

  /** Into a process that has just been started, and waits for it. */
  async load(snapshot: SnapshotLoad, signal: AbortSignal | undefined): Promise<void> {
    await waitForApi(this.#apiSocket, { timeoutMs: API_PATIENCE_MS, ended: this.exited(), signal })
    await this.#firecracker.loadSnapshot(snapshot, { signal })
    await this.#look(API_PATIENCE_MS)
  }

  async detachVsock(): Promise<false> {
    return false // its state has its vsock
  }

  async attachVsock(): Promise<void> {
    // It has never lost it.
  }

  async saveState(folder: string, kind: StateKind, signal?: AbortSignal): Promise<MachineState> {
    signal?.throwIfAborted()
    const { devices, memory } = folderFiles
    await requireRoom(folder, [devices, memory]) // before the whole memory is written for nothing
    // Two may save at once, one after the other for Firecracker: neither is to take the other's files.
    const mark = randomUUID().slice(0, 8)
    const inside = (name: string) => path.join(path.dirname(this.#apiSocket), `${name}.${mark}`)
    const state = { devices: path.join(folder, devices), memory: path.join(folder, memory) }
    try {
      await this.#firecracker.createSnapshot({
        snapshot_type: kind === 'diff' ? 'Diff' : 'Full',
        snapshot_path: path.basename(inside(devices)),
        mem_file_path: path.basename(inside(memory)),
      })
      await takeFile(inside(memory), state.memory)
      await takeFile(inside(devices), state.devices)
      signal?.throwIfAborted() // its API has no word to give it up by
      return state
    } catch (error) {
      // Half a state is none.
      for (const name of [state.devices, state.memory]) await rm(name, { force: true })
      throw error
    } finally {
      for (const name of [devices, memory]) await rm(inside(name), { recursive: true, force: true })
    }
  }

  /** It has no handler for SIGTERM, which a process in a PID namespace of its own does not even get, and nothing to bring in order. */
  override async signal(_name: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await super.signal('SIGKILL')
  }

  close(): void {
    this.shim.close()
    void this.#api?.close()
  }
}

/**
 * Takes a file out of the VMM's folder, where the VMM may have put anything under that name, and into ours, where nobody else reaches the
 * name: only then is it looked at, and by its descriptor. (A VMM that was taken over may have kept one too, and change the state of its own guest.)
 */
async function takeFile(from: string, to: string): Promise<void> {
  try {
    await rename(from, to)
  } catch (error) {
    if (!isSystemError(error, 'EXDEV')) throw error
    await copyForeignFile(from, to)
  }
  try {
    await using file = await openForeignFile(to)
    if (process.getuid?.() === 0) await file.chown(0, 0)
    await file.chmod(ALL_READ)
  } catch (error) {
    await rm(to, { force: true })
    throw error
  }
}

async function copyForeignFile(from: string, to: string): Promise<void> {
  await using file = await openForeignFile(from)
  await copyFile(`/proc/self/fd/${file.fd}`, to, constants.COPYFILE_EXCL)
}

/** @throws `vmm-failed` for anything but a file with one name. Nothing is waited for, as for who writes into a FIFO. */
async function openForeignFile(name: string): Promise<FileHandle> {
  const strange = () =>
    new BandSoxError('vmm-failed', `Firecracker left something else than a file as ${path.basename(name)}`)
  const file = await open(name, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(
    (error: unknown) => {
      throw isSystemError(error, 'ELOOP') || isSystemError(error, 'ENXIO') ? strange() : error
    },
  )
  const status = await file.stat()
  if (status.isFile() && status.nlink === 1) return file
  await file.close()
  throw strange()
}
