/** A machine with bench-guest as its /init: same kernel, modules, disks, shim and command line as a sandbox. */
import { chmod, chown, link, mkdir, mkdtemp, rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Machine, MachineSpec } from '../packages/bandsox/src/vmm/vmm.js'
import { BareConnection } from './bare-connection.js'
import { type BareLine, startOnLine } from './bare-line.js'
import { benchGuest } from './bench-guest.js'
import {
  buildInitramfs,
  copyEmptyDisk,
  DEFAULT_DISK_MIB,
  defaultLimits,
  emptyDisk,
  ImageStore,
  loadBoot,
  machineFiles,
  qemuDriver,
  readConfig,
  storageFolders,
} from './internals.js'

const PORT = 9000
/** In the driver's own range for the users of VMs, and above what this host hands out in earnest. */
const CID = 1_000_000
const UID = 1_900_000_000 + CID
/** As the agent's host side has them: a try may hang in a device that the guest has not set up yet. */
const RETRY_MS = 20
const TRY_MS = 1_000
const READY_TIMEOUT_MS = 20_000
const END_TIMEOUT_MS = 10_000

export interface BareMachine extends AsyncDisposable {
  /** A connection that has been answered once. */
  connection: BareConnection
  /** Milliseconds each stage of the start took; `guest.` ones count from the kernel's start. */
  timings: Record<string, number>
}

/** What all bare machines of a run share. */
export interface BareBoot extends AsyncDisposable {
  /** @param disk Path of the read-only disk, in the storage folder's file system. */
  start(disk: string): Promise<BareMachine>
  /** A machine without vsock, whose serial line bench-guest has for itself. */
  startOnLine(disk: string, line: BareLine): Promise<Omit<BareMachine, 'timings'>>
}

export async function prepareBareBoot(): Promise<BareBoot> {
  const { storage, shimPath, searchPath } = readConfig()
  const driver = qemuDriver({ shim: shimPath, searchPath })
  const folder = await mkdtemp(path.join(storage, 'bench-'))
  await chmod(folder, 0o711)
  const boot = await loadBoot(storage)
  const initramfs = path.join(folder, 'initramfs.cpio')
  await buildInitramfs({ kernel: boot.kernel, agentPath: benchGuest, output: initramfs })
  let started = 0

  async function layOut(disk: string): Promise<{ directory: string; spec: MachineSpec }> {
    const directory = path.join(folder, String(started++))
    await mkdir(directory, { mode: 0o711 })
    const empty = await emptyDisk({ cacheDirectory: storageFolders(storage).disks, sizeMib: DEFAULT_DISK_MIB })
    const overlay = path.join(directory, machineFiles.overlay)
    await link(boot.kernel.vmlinux.path, path.join(directory, machineFiles.kernel))
    await link(initramfs, path.join(directory, machineFiles.initramfs))
    await link(disk, path.join(directory, machineFiles.root))
    await copyEmptyDisk(empty.path, overlay)
    if (process.getuid?.() === 0) await chown(overlay, UID, UID)
    const spec: MachineSpec = {
      ...{ sandboxId: `bench-${started}`, directory, hostname: 'bench', files: machineFiles },
      ...{ vcpu: 1, memoryMib: 256, vsock: 'auto', cid: CID, port: PORT, uid: UID, limits: defaultLimits },
    }
    return { directory, spec }
  }

  async function end(machine: Machine, directory: string): Promise<void> {
    await machine.signal('SIGKILL')
    // Not `exited`: nothing of a machine keeps a process from ending, so this one would, in the middle of the wait.
    if ((await machine.exitedWithin(END_TIMEOUT_MS)) === undefined) throw new Error(`${directory} does not end`)
    machine.close()
    await rm(directory, { recursive: true })
  }

  async function start(disk: string): Promise<BareMachine> {
    const clock = performance.now()
    const { directory, spec } = await layOut(disk)
    const filesAt = performance.now()
    const { machine, facts } = await driver.start(spec)
    try {
      const vmmAt = performance.now()
      if (facts.vsock === null) throw new Error('the bare machine has no vsock')
      const { connection, hello } = await whenReady(path.join(directory, facts.vsock.socket))
      const timings = { files: filesAt - clock, vmm: vmmAt - filesAt, hello: performance.now() - vmmAt, ...hello }
      return {
        connection,
        timings,
        async [Symbol.asyncDispose]() {
          connection.close()
          await end(machine, directory)
        },
      }
    } catch (error) {
      await end(machine, directory)
      throw error
    }
  }

  async function startWithLine(disk: string, line: BareLine): Promise<Omit<BareMachine, 'timings'>> {
    const { directory, spec } = await layOut(disk)
    const { machine, connect } = await startOnLine({ shim: shimPath, searchPath }, spec, line)
    try {
      const connection = await connect(READY_TIMEOUT_MS)
      return {
        connection,
        async [Symbol.asyncDispose]() {
          connection.close()
          await end(machine, directory)
        },
      }
    } catch (error) {
      await end(machine, directory)
      throw error
    }
  }

  return {
    start,
    startOnLine: startWithLine,
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }),
  }
}

async function whenReady(socketPath: string): Promise<{ connection: BareConnection; hello: Record<string, number> }> {
  const deadline = performance.now() + READY_TIMEOUT_MS
  for (;;) {
    try {
      const connection = await BareConnection.open(socketPath, PORT, AbortSignal.timeout(TRY_MS))
      const stages = JSON.parse(await connection.ask('hello')) as Record<string, number>
      const hello = Object.fromEntries(Object.entries(stages).map(([stage, ms]) => [`guest.${stage}`, ms]))
      return { connection, hello }
    } catch (error) {
      if (performance.now() > deadline) throw error
    }
    await delay(RETRY_MS)
  }
}

/** Of an image that this host has. */
export async function imageDisk(reference: string): Promise<string> {
  const { images } = storageFolders(readConfig().storage)
  const store = new ImageStore(images)
  const named = await store.readReference(reference)
  const image = named === undefined ? undefined : await store.readImage(named.image)
  const disk = image === undefined ? undefined : await store.findDisk(image.disk)
  if (disk === undefined) throw new Error(`there is no image ${reference} in ${images}`)
  return disk.path
}
