/** Makes and starts a sandbox, step by step; each step registers its release, so that a failure leaves nothing. */
import { chmod, chown, link } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, type CreateOptions, messageOf, type PullOptions } from '@bandsox/sdk'
import { Agent } from '../guest/agent.js'
import { copySparse, emptyDisk } from '../image/disk.js'
import type { ImageRecord } from '../image/image-record.js'
import { describeExit } from '../process/shim.js'
import { cidPool, portPool } from '../store/lease.js'
import type { SandboxRecord } from '../store/record.js'
import { newSandboxId } from '../store/sandbox-store.js'
import { defaultLimits } from '../vmm/limits.js'
import type { Machine, MachineSpec } from '../vmm/vmm.js'
import { consoleSaysReady, consoleTail } from './console.js'
import { checkedShape, type Shape } from './create-options.js'
import { startOnFreeCid } from './free-cid.js'
import { type Host, machineFiles } from './host.js'
import { loadBoot, storageFolders } from './prepare.js'
import { Releases } from './releases.js'
import { killVmm, releaseNumbers, stateNow } from './settle.js'

/** Of the time for a boot, how long the console's word is waited for before the link is tried without it. */
const HINT_SHARE = 0.75

/** When root runs us, each VM's processes get a user of their own: this plus its CID, above every range that systemd hands out. */
const FIRST_VM_UID = 1_900_000_000

/**
 * @returns The record of a running sandbox, and the agent that answered.
 * @throws `bad-request`, what fetching the image throws, `host-missing`, `host-unsupported`, `host-resource`, `vsock-unavailable`,
 *   `vmm-failed`, `boot-failed`, `agent-unreachable`, or `options.signal`'s reason. Nothing is left behind.
 */
export async function createSandbox(
  host: Host,
  reference: string,
  options: CreateOptions,
): Promise<{ record: SandboxRecord; agent: Agent }> {
  const { signal } = options
  const shape = checkedShape(options)
  signal?.throwIfAborted()
  const releases = new Releases()
  const clock = stageClock()
  try {
    // Until the VM's own directory holds the image's disk, nobody may remove it.
    const letImageGo = await host.images.hold(signal)
    releases.add('our hold on the image', letImageGo)
    const image = await host.images.obtain(reference, imageOptions(options))
    let record = newRecord(reference, image.record, shape)
    clock.mark('image')
    const unlock = await host.store.makeDirectory(record.id)
    releases.add('the directory', () => host.store.remove(record.id))
    await host.store.write(record)

    releases.add('CID and port', async () => void (await releaseNumbers(host, record)))
    record = await takeNumbers(host, record)
    await layOutFiles(host, record, signal)
    await letImageGo()
    clock.mark('files')
    if (image.changed) await host.images.makeRoom(image.record.id, options.onImageEvent)

    releases.add('the VMM', async () => void (await killVmm(host, host.store.directoryOf(record.id))))
    const { spec, machine, facts } = await startOnFreeCid(host, record, {
      specOf: (current) => machineSpec(host, current),
      onChange: (changed) => {
        record = changed
      },
      signal,
    })
    clock.mark('vmm')
    releases.add('our hold on the VMM', async () => machine.close())

    const agent = new Agent(host.vmm.links(spec.directory, facts, spec.port))
    releases.add('connections', async () => agent.close())
    const hello = await whenReady(machine, agent, spec, shape.bootTimeoutMs, signal)
    clock.mark('hello')

    record = {
      ...record,
      machine: facts,
      state: stateNow('running'),
      timings: { ...clock.stages, ...guestStages(hello.stages) },
    }
    await host.store.write(record)
    machine.close()
    await unlock()
    releases.forget()
    return { record, agent }
  } catch (error) {
    for (const failure of await releases.run()) host.debug(`after a failed create: ${failure}`)
    throw error
  }
}

const imageOptions = ({ pull, platform, credentials, onImageEvent, signal }: CreateOptions): PullOptions => ({
  ...(pull !== undefined && { pull }),
  ...(platform !== undefined && { platform }),
  ...(credentials !== undefined && { credentials }),
  ...(onImageEvent !== undefined && { onEvent: onImageEvent }),
  ...(signal !== undefined && { signal }),
})

function newRecord(reference: string, image: ImageRecord, shape: Shape): SandboxRecord {
  const { env, user, workingDir, entrypoint, cmd, stopSignal } = image.config
  const { bootTimeoutMs: _, ...kept } = shape
  return {
    version: 1,
    id: newSandboxId(),
    ...kept,
    image: { reference, digest: image.id, config: { env, user, workingDir, entrypoint, cmd, stopSignal } },
    cid: null,
    port: null,
    state: stateNow('creating'),
    createdAt: new Date().toISOString(),
    timings: {},
  }
}

/** Written to the record after each number, so that a killed process leaves none that nobody knows of. */
async function takeNumbers(host: Host, before: SandboxRecord): Promise<SandboxRecord> {
  const withCid = { ...before, cid: await host.store.leases.take(cidPool, before.id) }
  host.debug(`Allocated CID: ${withCid.cid}`)
  await host.store.write(withCid)
  const withPort = { ...withCid, port: await host.store.leases.take(portPool, before.id) }
  host.debug(`Allocated port: ${withPort.port}`)
  await host.store.write(withPort)
  return withPort
}

/** Hard links to what all share, a sparse copy of an empty disk: nothing of the image is copied. */
async function layOutFiles(host: Host, record: SandboxRecord, signal: AbortSignal | undefined): Promise<void> {
  const { root } = host.store
  const directory = host.store.directoryOf(record.id)
  const inDirectory = (file: string) => path.join(directory, file)
  const boot = await loadBoot(root)
  const image = await host.images.diskOf(record.image.digest)
  const disk = await emptyDisk({ cacheDirectory: storageFolders(root).disks, sizeMib: record.diskMib, signal })
  await link(boot.kernel.vmlinux.path, inDirectory(machineFiles.kernel))
  await link(boot.initramfs.path, inDirectory(machineFiles.initramfs))
  await link(image, inDirectory(machineFiles.root))
  await copySparse(disk.path, inDirectory(machineFiles.overlay), signal)
  await chmod(inDirectory(machineFiles.overlay), 0o600)
}

/** What is started; the disk becomes the VM's own. */
async function machineSpec(host: Host, record: SandboxRecord): Promise<MachineSpec> {
  const { cid, port } = record
  if (cid === null || port === null)
    throw new BandSoxError('internal', 'a machine is started before it has its numbers')
  const directory = host.store.directoryOf(record.id)
  const uid = FIRST_VM_UID + cid
  if (process.getuid?.() === 0) await chown(path.join(directory, machineFiles.overlay), uid, uid)
  const { id: sandboxId, vcpu, memoryMib, vsock } = record
  const hostname = record.name ?? record.id.replace('_', '-')
  const limits = defaultLimits
  return { sandboxId, directory, vcpu, memoryMib, vsock, cid, port, uid, files: machineFiles, hostname, limits }
}

/** @throws What ended the VMM, with what guest and VMM printed last, rather than a mere lack of an answer. */
async function whenReady(
  machine: Machine,
  agent: Agent,
  spec: MachineSpec,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): ReturnType<Agent['waitUntilReady']> {
  const ended = new AbortController()
  machine.exited().then(
    (exit) => ended.abort(new BandSoxError('boot-failed', describeExit(exit))),
    (error: unknown) => ended.abort(error),
  )
  const either = signal === undefined ? ended.signal : AbortSignal.any([signal, ended.signal])
  try {
    const startedAt = performance.now()
    await consoleSaysReady(spec.directory, timeoutMs * HINT_SHARE, either)
    return await agent.waitUntilReady({ timeoutMs: timeoutMs - (performance.now() - startedAt), signal: either })
  } catch (error) {
    signal?.throwIfAborted()
    const printed = await consoleTail(spec.directory)
    const code = error instanceof BandSoxError ? error.code : 'boot-failed'
    const within = code === 'agent-unreachable' ? ` within ${timeoutMs} ms` : ''
    throw new BandSoxError(
      code,
      `cannot boot sandbox ${spec.sandboxId}${within}: ${messageOf(error)}${quote(printed)}`,
      {
        cause: error,
        hint: 'the sandbox was removed again; the lines above are the last of its console',
      },
    )
  }
}

const quote = (printed: string): string =>
  printed === '' ? '; it printed nothing' : `; it printed:\n${printed.replace(/^/gm, '  | ')}`

/** Milliseconds between marks, in order. */
function stageClock(): { mark: (stage: string) => void; stages: Record<string, number> } {
  const stages: Record<string, number> = {}
  let before = performance.now()
  return {
    stages,
    mark(stage) {
      const now = performance.now()
      stages[stage] = Math.round(now - before)
      before = now
    },
  }
}

/** The guest's own stages, told apart from ours, in their order: milliseconds since its kernel began. */
function guestStages(stages: Record<string, number> = {}): Record<string, number> {
  const inOrder = Object.entries(stages).sort(([, a], [, b]) => a - b)
  return Object.fromEntries(inOrder.map(([stage, ms]) => [`guest.${stage}`, ms]))
}
