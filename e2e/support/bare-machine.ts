/** A machine without a sandbox, as a driver starts it: its disks are the test's. */
import { mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { readConfig } from 'bandsox/internal/config.js'
import { Agent } from 'bandsox/internal/guest/agent.js'
import { startJob } from 'bandsox/internal/guest/job.js'
import { describeExit, VMM_LOG } from 'bandsox/internal/process/shim.js'
import { consoleSaysReady } from 'bandsox/internal/sandbox/console.js'
import { openHost } from 'bandsox/internal/sandbox/local-bandsox.js'
import { defaultLimits } from 'bandsox/internal/vmm/limits.js'
import type { Machine, MachineFacts, MachineSpec, Vmm } from 'bandsox/internal/vmm/vmm.js'
import type { TestStorage } from './storage.js'

const PORT = 9_000
const PATIENCE_MS = 60_000
/** Not among those that sandboxes of a test get, which count from the first. */
const CID = 9_100
const UID = 1_900_009_100

export interface BareMachine extends AsyncDisposable {
  readonly machine: Machine
  readonly facts: MachineFacts
  readonly directory: string
  readonly agent: Agent
  /** What a command of the shell printed. @throws When it failed. */
  run(shell: string, link?: 'vsock' | 'serial'): Promise<string>
  stop(): Promise<void>
}

/** The driver that a storage folder's machines have. */
export async function vmmOf({ folder: storage }: TestStorage): Promise<Vmm & AsyncDisposable> {
  const { vmm, store } = await openHost({ ...readConfig(process.env, { storage }), warn: () => undefined })
  return Object.assign(vmm, { [Symbol.asyncDispose]: async () => store.close() })
}

/** A folder for a machine. */
export function machineFolder({ folder }: TestStorage, name: string): string {
  const directory = path.join(folder, 'vms', `sbx_${name}`)
  mkdirSync(directory, { mode: 0o711, recursive: true })
  return directory
}

export type BareSpec = Pick<MachineSpec, 'directory'> & Partial<MachineSpec>

export const bareUid = process.getuid?.() === 0 ? UID : (process.getuid?.() ?? 0)

/** What {@link startBare} starts. */
export const bareSpec = (over: BareSpec): MachineSpec => ({
  ...{
    sandboxId: path.basename(over.directory),
    vcpu: 1,
    memoryMib: 256,
    hostname: 'bare',
    vsock: 'auto',
    cid: CID,
    port: PORT,
  },
  ...{ uid: UID, limits: defaultLimits },
  files: { kernel: 'kernel', initramfs: 'initramfs', root: 'root.squashfs', overlay: 'overlay.ext4' },
  ...over,
})

/** Boots one, and waits for its agent. */
export async function startBare(vmm: Vmm, over: BareSpec): Promise<BareMachine> {
  const spec = bareSpec(over)
  const { directory } = spec
  const { machine, facts } = await vmm.start(spec)
  const agent = new Agent(vmm.links(directory, facts, spec.port))
  const ended = new AbortController()
  machine.exited().then(
    (exit) => ended.abort(new Error(`${describeExit(exit)}: ${readFileSync(path.join(directory, VMM_LOG), 'utf8')}`)),
    (error: unknown) => ended.abort(error),
  )
  const waiting = { timeoutMs: PATIENCE_MS, signal: ended.signal }
  await consoleSaysReady(directory, {
    ...{ port: spec.port, hasVsock: facts.vsock !== null, after: undefined, ...waiting },
  })
  await agent.waitUntilReady(waiting)
  return {
    ...{ machine, facts, directory, agent },
    async run(shell, link) {
      const options = link === undefined ? {} : { link }
      const { stdout, stderr, exitCode } = await startJob(async () => agent, { shell }, options).collect()
      if (exitCode !== 0) throw new Error(`${shell}: ${exitCode}: ${stderr}`)
      return stdout
    },
    async stop() {
      const connection = await agent.acquire()
      connection.send({ type: 'shutdown', mode: machine.powerOffMode, graceMs: 1_000 })
      await connection.receiveMessage('stopping', { about: 'power the guest off', timeoutMs: PATIENCE_MS })
      agent.discard(connection)
      if ((await machine.exitedWithin(PATIENCE_MS)) === undefined) throw new Error('the machine does not end')
    },
    async [Symbol.asyncDispose]() {
      agent.close()
      await machine.signal('SIGKILL').catch(() => undefined) // a shim that has ended has ended it
      machine.close()
    },
  }
}
