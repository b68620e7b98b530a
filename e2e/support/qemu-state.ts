/** A sandbox on QEMU whose machine's state can be saved, and machines beside it that are loaded from that. */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { chmod, mkdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import type { BandSox, Sandbox } from 'bandsox'
import { imageSettings, readConfig } from 'bandsox/internal/config.js'
import { LocalBandSox, type LocalConfig, openHost } from 'bandsox/internal/sandbox/local-bandsox.js'
import type { LoadOptions, Machine, MachineSpec, MachineState, SerialLine, Vmm } from 'bandsox/internal/vmm/vmm.js'
import { agentAt, machineBeside } from './firecracker.js'
import { namesIn } from './storage.js'

/** Beside the storage's folder, in which it would be a stranger. */
const configFileOf = (storage: string): string => `${storage}.config.json`

function config(storage: string): LocalConfig {
  const read = readConfig(process.env, { storage, configFile: configFileOf(storage) })
  return { ...read, images: imageSettings(read), vmm: 'qemu', warn: () => undefined }
}

export const openOnQemu = (storage: string): Promise<LocalBandSox> => LocalBandSox.open(config(storage))

export interface StateHost extends AsyncDisposable {
  storage: string
  vmm: Vmm
  sandbox: Sandbox
  /** Of the sandbox. */
  machine: Machine
  /** An empty folder for a state. */
  stateFolder(name: string): Promise<string>
  /** A machine that is no sandbox, with its own copy of the disk as it is now. Numbers begin with 0. */
  beside(index: number, over?: Partial<MachineSpec>): Promise<MachineSpec>
}

/**
 * @param create Options of the sandbox; it has no vsock unless they say so, whose daemon no state can be saved with.
 * @param serialLine Of the sandbox, and of machines beside it.
 */
export async function stateHost(
  storage: string,
  create: Parameters<BandSox['create']>[1] = {},
  serialLine: SerialLine = 'port',
): Promise<StateHost> {
  await writeFile(configFileOf(storage), JSON.stringify({ qemu: { serialLine } }))
  const bandsox = await openOnQemu(storage)
  const sandbox = await bandsox.create('bandsox/base', { vsock: 'off', diskMib: 64, ...create })
  const { directory, id, memoryMib } = await sandbox.info()
  const { vmm, store } = await openHost(config(storage))
  const port = (await store.read(id))?.port ?? 0
  const machine = await vmm.attach(directory)
  return {
    storage,
    vmm,
    sandbox,
    machine,
    async stateFolder(name) {
      const folder = path.join(storage, name)
      await mkdir(folder, { mode: 0o700 })
      return folder
    },
    async beside(index, over = {}) {
      const spec = await machineBeside({ directory, id }, { cid: 100 + index, port })
      await chmod(spec.directory, 0o711) // as a sandbox's: QEMU's user goes by it
      return { ...spec, vsock: 'off', memoryMib, serialLine, ...over }
    },
    async [Symbol.asyncDispose]() {
      machine.close()
      store.close()
      await sandbox.delete({ force: true })
      await bandsox[Symbol.asyncDispose]()
      await rm(configFileOf(storage))
    },
  }
}

/** A loaded machine with its agent. */
export interface Loaded {
  spec: MachineSpec
  machine: Machine
  agent: ReturnType<typeof agentAt>
}

export async function loaded(vmm: Vmm, spec: MachineSpec, state: MachineState, options?: LoadOptions): Promise<Loaded> {
  const { machine, facts } = await vmm.load(spec, state, options)
  return { spec, machine, agent: agentAt(vmm, spec, facts) }
}

/** @returns What is left of it but its disks and logs. */
export async function end({ spec, machine, agent }: Loaded): Promise<string[]> {
  agent.close()
  await machine.signal('SIGKILL')
  if ((await machine.exitedWithin(10_000)) === undefined) throw new Error('a killed machine runs on')
  machine.close()
  const left = namesIn(spec.directory).filter((name) => /^(loaded|saved)$|\.sock|\.new$/.test(name))
  await rm(spec.directory, { recursive: true })
  return left
}

export async function digestOf(file: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(file), hash)
  return hash.digest('hex')
}
