/** A running QEMU machine: its shim for the process, QMP for the machine. */
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError } from '@bandsox/sdk'
import { z } from 'zod'
import { readShimConfig } from '../../process/shim.js'
import type { LiveLimits } from '../limits.js'
import { attachShim, ShimMachine } from '../shim-machine.js'
import type { Machine } from '../vmm.js'
import { QMP_SOCKET, throttleCommands } from './command-line.js'
import { withQmp } from './qmp.js'
import { hasVsockDevice, plugVsock, unplugVsock } from './vsock-plug.js'

const MIB = 1024 * 1024
/** An emulated guest gives some hundred MiB in a second. */
const BALLOON_PATIENCE_MS = 5_000
const BALLOON_POLL_MS = 50
const balloonSchema = z.object({ actual: z.number().int().nonnegative() })

/** Takes hold of the machine in `directory`; a shim that died is replaced first. @throws `vmm-failed`. */
export const attachMachine = async (shimPath: string, directory: string): Promise<Machine> =>
  new QemuMachine(await attachShim(shimPath, directory), directory)

class QemuMachine extends ShimMachine implements Machine {
  readonly powerOffMode = 'poweroff'
  readonly #qmpSocket = this.pathOf(QMP_SOCKET)

  async pause(): Promise<void> {
    await this.quietly(async () => void (await withQmp(this.#qmpSocket, (qmp) => qmp.execute('stop'))))
    await this.untilTold((status) => status !== 'running')
  }

  async resume(): Promise<void> {
    await withQmp(this.#qmpSocket, (qmp) => qmp.execute('cont'))
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

  async saveState(): Promise<never> {
    throw new BandSoxError('host-unsupported', 'the QEMU driver cannot save the state of a machine yet')
  }

  close(): void {
    this.shim.close()
  }
}
