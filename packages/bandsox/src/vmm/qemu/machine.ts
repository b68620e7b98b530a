/** A running QEMU machine: its shim for the process, QMP for the machine. */
import path from 'node:path'
import { adoptVmm, readRun, ShimClient, type VmmExit } from '../../process/shim.js'
import type { Machine } from '../vmm.js'
import { QMP_SOCKET } from './command-line.js'
import { withQmp } from './qmp.js'

/** Takes hold of the machine in `directory`; a shim that died is replaced first. @throws `vmm-failed`. */
export async function attachMachine(shimPath: string, directory: string): Promise<Machine> {
  if (!(await readRun(directory)).shimAlive) await adoptVmm(shimPath, directory)
  return new QemuMachine(await ShimClient.connect(directory), directory)
}

class QemuMachine implements Machine {
  readonly #shim: ShimClient
  readonly #qmpSocket: string

  constructor(shim: ShimClient, directory: string) {
    this.#shim = shim
    this.#qmpSocket = path.join(directory, QMP_SOCKET)
    shim.unref()
  }

  async pause(): Promise<void> {
    await withQmp(this.#qmpSocket, (qmp) => qmp.execute('stop'))
  }

  async resume(): Promise<void> {
    await withQmp(this.#qmpSocket, (qmp) => qmp.execute('cont'))
  }

  async powerDown(): Promise<void> {
    await withQmp(this.#qmpSocket, (qmp) => qmp.execute('system_powerdown'))
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
