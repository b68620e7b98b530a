/** A running QEMU machine: its shim for the process, QMP for the machine. */
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError } from '@bandsox/sdk'
import { z } from 'zod'
import { adoptVmm, readRun, readShimConfig, ShimClient, type VmmExit } from '../../process/shim.js'
import { setCpus } from '../cgroup.js'
import type { LiveLimits } from '../limits.js'
import type { Machine } from '../vmm.js'
import { QMP_SOCKET, throttleCommands } from './command-line.js'
import { withQmp } from './qmp.js'

const MIB = 1024 * 1024
/** An emulated guest gives some hundred MiB in a second. */
const BALLOON_PATIENCE_MS = 5_000
const BALLOON_POLL_MS = 50
/** A shim tells within a ms or so, on a busy host later; one that does not is not waited for long. */
const TOLD_PATIENCE_MS = 2_000
const TOLD_POLL_MS = 2
const balloonSchema = z.object({ actual: z.number().int().nonnegative() })

/** Takes hold of the machine in `directory`; a shim that died is replaced first. @throws `vmm-failed`. */
export async function attachMachine(shimPath: string, directory: string): Promise<Machine> {
  if (!(await readRun(directory)).shimAlive) await adoptVmm(shimPath, directory)
  return new QemuMachine(await ShimClient.connect(directory), directory)
}

class QemuMachine implements Machine {
  readonly #shim: ShimClient
  readonly #directory: string
  readonly #qmpSocket: string

  constructor(shim: ShimClient, directory: string) {
    this.#shim = shim
    this.#directory = directory
    this.#qmpSocket = path.join(directory, QMP_SOCKET)
    shim.unref()
  }

  async pause(): Promise<void> {
    await this.#shim.holdLink()
    await withQmp(this.#qmpSocket, (qmp) => qmp.execute('stop'))
    await this.#untilTold((status) => status !== 'running')
  }

  async resume(): Promise<void> {
    await withQmp(this.#qmpSocket, (qmp) => qmp.execute('cont'))
    await this.#untilTold((status) => status !== 'paused')
  }

  /** What a machine does is written down by its shim, a moment later: until then everybody would go by what it did before. */
  async #untilTold(isSo: (status: string | undefined) => boolean): Promise<void> {
    const deadline = performance.now() + TOLD_PATIENCE_MS
    while (!isSo((await readRun(this.#directory)).status?.status) && performance.now() < deadline)
      await delay(TOLD_POLL_MS)
  }

  async powerDown(): Promise<void> {
    await withQmp(this.#qmpSocket, (qmp) => qmp.execute('system_powerdown'))
  }

  async setLimits({ cpus, ...disk }: LiveLimits): Promise<void> {
    const group = (await readShimConfig(this.#directory))?.cgroup
    if (group !== undefined) await setCpus(group.folder, cpus)
    else if (cpus !== null)
      throw new BandSoxError('host-unsupported', 'cannot limit the processors of a machine that has no control group')
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

  async signal(name: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await this.#shim.signal(name)
  }

  exited(): Promise<VmmExit> {
    return this.#shim.exited()
  }

  exitedWithin(timeoutMs: number): Promise<VmmExit | undefined> {
    return this.#shim.exitedWithin(timeoutMs)
  }

  close(): void {
    this.#shim.close()
  }
}
