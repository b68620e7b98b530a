/**
 * Hosts with a Firecracker: a stand-in that runs everywhere (guest/cmd/stand-in-firecracker, with the real agent as its guest), and the
 * real one, where `BANDSOX_FIRECRACKER` names it and KVM works.
 */
import { randomUUID } from 'node:crypto'
import { appendFile, chmod, copyFile, link, mkdtemp, rm } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { readConfig } from 'bandsox/internal/config.js'
import { Agent } from 'bandsox/internal/guest/agent.js'
import { thawGuest } from 'bandsox/internal/guest/freeze.js'
import { startJob } from 'bandsox/internal/guest/job.js'
import { makeFolder } from 'bandsox/internal/process/make-folder.js'
import { LocalBandSox, type LocalConfig, openHost } from 'bandsox/internal/sandbox/local-bandsox.js'
import { LocalFiles } from 'bandsox/internal/sandbox/local-files.js'
import type { JailerMode } from 'bandsox/internal/vmm/firecracker/host.js'
import { type HostTools, probeKvm } from 'bandsox/internal/vmm/host.js'
import type { MachineFacts, MachineSpec, Vmm } from 'bandsox/internal/vmm/vmm.js'

const nativeFolder = fileURLToPath(new URL('../../../packages/bandsox/native/', import.meta.url))
const native = (name: string) => path.join(nativeFolder, name)

export interface FirecrackerHost extends AsyncDisposable {
  readonly isReal: boolean
  config(storage: string): LocalConfig
}

export interface StandInOptions {
  jailer: JailerMode
  /** Flags of the stand-in's own: a version, faults. */
  flags?: readonly string[]
}

/** A folder with a Firecracker and a jailer that are none, on a host whose KVM is said to work. */
export async function standInHost({
  jailer,
  flags = [],
}: StandInOptions): Promise<FirecrackerHost & { readonly folder: string }> {
  const folder = await mkdtemp('/tmp/bandsox-firecracker-')
  await chmod(folder, 0o755) // a VM's own user starts it
  const at = (name: string) => path.join(folder, name)
  await copyFile(native('stand-in-firecracker'), at('firecracker'))
  if (flags.length > 0) await appendFile(at('firecracker'), `\n#stand-in ${JSON.stringify(flags)}\n`)
  await copyFile(native('stand-in-jailer'), at('jailer'))
  return {
    isReal: false,
    folder,
    config: (storage) => standInConfig(folder, storage, jailer),
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }),
  }
}

/** For whoever has only the folder of a {@link standInHost}. */
export const standInConfig = (folder: string, storage: string, jailer: JailerMode): LocalConfig => ({
  ...readConfig({ ...process.env, BANDSOX_VMM: '', BANDSOX_JAIL: '' }, { storage }),
  kvm: { usable: true, groups: [] },
  firecracker: { program: path.join(folder, 'firecracker'), jailer: path.join(folder, 'jailer') },
  vmm: 'firecracker',
  jailer,
  warn: () => undefined,
})

/** @returns Why there is none, for a test that is skipped. */
export async function realHost(jailer: JailerMode): Promise<FirecrackerHost | string> {
  const program = process.env['BANDSOX_FIRECRACKER']
  if (program === undefined || program === '') return 'BANDSOX_FIRECRACKER is not set: no real Firecracker to test with'
  if (jailer === 'on' && (process.env['BANDSOX_JAILER'] ?? '') === '')
    return 'BANDSOX_JAILER is not set: no real jailer to test with'
  const kvm = await probeKvm(toolsOf(readConfig()))
  if (!kvm.usable) return `BANDSOX_FIRECRACKER is set, but KVM is not usable: ${kvm.reason}`
  if (jailer === 'off' && kvm.groups === undefined) return kvm.reason
  return {
    isReal: true,
    config: (storage) => ({
      ...readConfig(process.env, { storage }),
      vmm: 'firecracker',
      jailer,
      warn: () => undefined,
    }),
    async [Symbol.asyncDispose]() {
      // Nothing of it is ours.
    },
  }
}

const toolsOf = (config: ReturnType<typeof readConfig>): HostTools => ({
  shim: config.shimPath,
  searchPath: config.searchPath,
  firecracker: config.firecracker,
})

export const openOn = (host: FirecrackerHost, storage: string): Promise<LocalBandSox> =>
  LocalBandSox.open(host.config(storage))

/** The driver itself, below all that a sandbox is. The store is the caller's to close. */
export async function driverOn(host: FirecrackerHost, storage: string): Promise<{ vmm: Vmm; close: () => void }> {
  const { vmm, store } = await openHost(host.config(storage))
  return { vmm, close: () => store.close() }
}

/** A machine that is no sandbox, beside one whose files it has: its own copy of the disk, and hard links to the rest. */
export async function machineBeside(
  { directory, id }: { directory: string; id: string },
  numbers: { cid: number; port: number },
  overlay = path.join(directory, 'overlay.ext4'),
): Promise<MachineSpec> {
  const own = path.join(path.dirname(directory), `${id}-${randomUUID().slice(0, 8)}`)
  await makeFolder(own, 0o700)
  for (const name of ['kernel', 'initramfs', 'root.squashfs'])
    await link(path.join(directory, name), path.join(own, name))
  await copyFile(overlay, path.join(own, 'overlay.ext4'))
  const uid = 1_900_100_000 + numbers.cid
  if (process.getuid?.() === 0) {
    const { chown } = await import('node:fs/promises')
    await chown(path.join(own, 'overlay.ext4'), uid, uid)
  }
  return {
    sandboxId: path.basename(own),
    directory: own,
    vcpu: 1,
    memoryMib: 256,
    files: { kernel: 'kernel', initramfs: 'initramfs', root: 'root.squashfs', overlay: 'overlay.ext4' },
    hostname: 'beside',
    vsock: 'auto',
    uid,
    ...numbers,
    limits: { cpus: null, processes: null, diskBytesPerSecond: null, diskOperationsPerSecond: null },
  }
}

/** The agent of such a machine, as a sandbox would use it. */
export function agentAt(vmm: Vmm, { directory, port }: MachineSpec, facts: MachineFacts) {
  const agent = new Agent(vmm.links(directory, facts, port))
  const findAgent = async () => agent
  return {
    exec: (command: string | readonly string[]) =>
      startJob(findAgent, typeof command === 'string' ? { shell: command } : { argv: [...command] }),
    files: new LocalFiles(findAgent, () => undefined),
    /** Its processes are frozen in its state when it was saved as a paused sandbox. */
    async waitUntilReady(options: { timeoutMs: number }) {
      await agent.waitUntilReady(options)
      await thawGuest(agent, options)
    },
    close: () => agent.close(),
  }
}
