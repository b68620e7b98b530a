/** A running QEMU machine: its shim for the process, QMP for the machine. */
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError } from '@bandsox/sdk'
import { z } from 'zod'
import { readShimConfig, type ShimClient } from '../../process/shim.js'
import type { LiveLimits } from '../limits.js'
import { attachShim, ShimMachine } from '../shim-machine.js'
import type { Machine, MachineState, StateKind } from '../vmm.js'
import { QMP_SOCKET, throttleCommands } from './command-line.js'
import { awaitLoaded } from './load.js'
import { withQmp } from './qmp.js'
import { giveSavingUp, saveState } from './save.js'
import { forgetSaved } from './state-files.js'
import { hasVsockDevice, plugVsock, unplugVsock } from './vsock-plug.js'

const MIB = 1024 * 1024
/** An emulated guest gives some hundred MiB in a second. */
const BALLOON_PATIENCE_MS = 5_000
const BALLOON_POLL_MS = 50
const balloonSchema = z.object({ actual: z.number().int().nonnegative() })

/** Takes hold of the machine in `directory`; a shim that died is replaced first. @throws `vmm-failed`. */
export const attachMachine = async (shimPath: string, directory: string): Promise<QemuMachine> =>
  new QemuMachine(shimPath, await attachShim(shimPath, directory), directory)

export const onlyWhole = (what: string): BandSoxError =>
  new BandSoxError('host-unsupported', `the QEMU driver cannot ${what}: it knows whole states only`, {
    hint: 'save a state of the kind full',
  })

export class QemuMachine extends ShimMachine implements Machine {
  readonly powerOffMode = 'poweroff'
  readonly #qmpSocket = this.pathOf(QMP_SOCKET)
  readonly #shimPath: string

  constructor(shimPath: string, shim: ShimClient, directory: string) {
    super(shim, directory)
    this.#shimPath = shimPath
  }

  async pause(): Promise<void> {
    await this.quietly(async () => void (await withQmp(this.#qmpSocket, (qmp) => qmp.execute('stop'))))
    await this.untilTold((status) => status !== 'running')
  }

  async resume(): Promise<void> {
    await forgetSaved(this.directory) // it is no longer as it was saved
    await withQmp(this.#qmpSocket, async (qmp) => {
      await giveSavingUp(qmp)
      await qmp.execute('cont')
    })
    await this.untilTold((status) => status !== 'paused')
  }

  async powerDown(): Promise<void> {
    await withQmp(this.#qmpSocket, (qmp) => qmp.execute('system_powerdown'))
  }

  async setLimits({ cpus, ...disk }: LiveLimits): Promise<void> {
    await this.setCpus(cpus)
    await withQmp(this.#qmpSocket, async (qmp) => {
      for (const command of throttleCommands(disk)) await qmp.execute('block_set_io_throttle', command)
    })
  }

  async setMemory(memoryMib: number): Promise<number> {
    return await withQmp(this.#qmpSocket, async (qmp) => {
      const memoryNow = async () => Math.ceil(balloonSchema.parse(await qmp.execute('query-balloon')).actual / MIB)
      await qmp.execute('balloon', { value: memoryMib * MIB })
      const deadline = performance.now() + BALLOON_PATIENCE_MS
      let now = await memoryNow()
      while (now !== memoryMib && performance.now() < deadline) {
        await delay(BALLOON_POLL_MS)
        now = await memoryNow()
      }
      return now
    })
  }

  async metrics(): Promise<undefined> {
    return undefined // QEMU keeps none of its own
  }

  async detachVsock(): Promise<boolean> {
    return await withQmp(this.#qmpSocket, async (qmp) => {
      if (!(await hasVsockDevice(qmp))) return false
      await this.shim.shutVsock()
      try {
        await unplugVsock(qmp)
      } catch (error) {
        if (await hasVsockDevice(qmp)) await this.shim.openVsock() // the guest has kept it
        throw error
      }
      return true
    })
  }

  async attachVsock(): Promise<void> {
    if ((await readShimConfig(this.directory))?.vsock?.kind !== 'daemon') return
    await withQmp(this.#qmpSocket, plugVsock)
    await this.shim.openVsock()
  }

  async saveState(folder: string, kind: StateKind, signal?: AbortSignal): Promise<MachineState> {
    if (kind === 'diff') throw onlyWhole('save only what has changed in a machine since')
    const saving = { shimPath: this.#shimPath, directory: this.directory, qmpSocket: this.#qmpSocket, signal }
    return await saveState(saving, folder)
  }

  /** Of a machine that has just been started with a state. @throws `signal.reason`; `vmm-control`. */
  async awaitLoaded(resume: boolean, signal: AbortSignal | undefined): Promise<void> {
    await awaitLoaded(this.#qmpSocket, resume, signal)
    await this.untilTold((status) => status === (resume ? 'running' : 'paused'))
  }

  close(): void {
    this.shim.close()
  }
}
