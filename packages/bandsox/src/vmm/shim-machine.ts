/** What a machine is by its shim, whichever VMM it has: its process, its end, its control group, what it does now. */
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError } from '@bandsox/sdk'
import { adoptVmm, describeExit, endOfRun, readRun, readShimConfig, ShimClient, type VmmExit } from '../process/shim.js'
import { setCpus } from './cgroup.js'

/** A shim tells within a ms or so, on a busy host later; one that does not is not waited for long. */
const TOLD_PATIENCE_MS = 2_000
const TOLD_POLL_MS = 2

export abstract class ShimMachine {
  protected readonly shim: ShimClient
  protected readonly directory: string

  constructor(shim: ShimClient, directory: string) {
    this.shim = shim
    this.directory = directory
    shim.unref()
  }

  /** Ends the traffic with the guest, and then has it stopped; if that fails, the traffic goes on at once. */
  protected async quietly(stop: () => Promise<void>): Promise<void> {
    await this.shim.holdLink()
    try {
      await stop()
    } catch (error) {
      await this.shim.freeLink().catch(() => undefined) // it is free by itself in a while; the reason is the news
      throw error
    }
  }

  /** What a machine does is written down by its shim, a moment later: until then everybody would go by what it did before. */
  protected async untilTold(isSo: (status: string | undefined) => boolean): Promise<void> {
    const deadline = performance.now() + TOLD_PATIENCE_MS
    while (!isSo((await readRun(this.directory)).status?.status) && performance.now() < deadline)
      await delay(TOLD_POLL_MS)
  }

  protected async setCpus(cpus: number | null): Promise<void> {
    const group = (await readShimConfig(this.directory))?.cgroup
    if (group !== undefined) await setCpus(group.folder, cpus)
    else if (cpus !== null)
      throw new BandSoxError('host-unsupported', 'cannot limit the processors of a machine that has no control group')
  }

  protected pathOf(name: string): string {
    return path.join(this.directory, name)
  }

  async signal(name: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await this.shim.signal(name)
  }

  exited(): Promise<VmmExit> {
    return this.shim.exited()
  }

  exitedWithin(timeoutMs: number): Promise<VmmExit | undefined> {
    return this.shim.exitedWithin(timeoutMs)
  }
}

/** Takes hold of the shim of the machine in `directory`; one that died is replaced first. @throws `vmm-failed`. */
export async function attachShim(shimPath: string, directory: string): Promise<ShimClient> {
  if (!(await readRun(directory)).shimAlive) await adoptVmm(shimPath, directory)
  return await ShimClient.connect(directory)
}

/**
 * Takes hold of a machine that has just been started. One whose VMM ended at once may be gone with its shim by then.
 *
 * @throws `boot-failed` with how the VMM ended, when nothing of it is left; what `attach` throws.
 */
export async function attachStarted<M>(directory: string, attach: () => Promise<M>): Promise<M> {
  try {
    return await attach()
  } catch (error) {
    const exit = await endOfRun(directory)
    if (exit === undefined) throw error
    throw new BandSoxError('boot-failed', describeExit(exit), { cause: error })
  }
}
