/** A sandbox of this host. */
import {
  BandSoxError,
  type ExecOptions,
  type Files,
  isSystemError,
  type Job,
  type Operation,
  requireAllowed,
  type Sandbox,
  type SandboxInfo,
  type SandboxState,
} from '@bandsox/sdk'
import { Agent } from '../guest/agent.js'
import { type ExecRequest, startJob } from '../guest/job.js'
import { parseSignal } from '../guest/signal.js'
import { readRun } from '../process/shim.js'
import { lockOperation } from '../store/operation-lock.js'
import type { SandboxRecord } from '../store/record.js'
import { readConsole } from './console.js'
import type { Host } from './host.js'
import { LocalFiles } from './local-files.js'
import { destroy, killVmm, releaseNumbers, settle, stateAfterExit, stateNow } from './settle.js'
import { stopMachine } from './stop.js'

export class LocalSandbox implements Sandbox {
  readonly id: string
  readonly files: Files
  readonly #host: Host
  /** This program made the sandbox, so disposing removes it. */
  readonly #isOwned: boolean
  #agent: Agent | undefined

  constructor(host: Host, id: string, made?: { agent: Agent }) {
    this.#host = host
    this.id = id
    this.#isOwned = made !== undefined
    this.#agent = made?.agent
    this.#agent?.onRefused(() => this.#replaceDeadShim())
    this.files = new LocalFiles(() => this.#agentFor('transfer'))
  }

  async info(): Promise<SandboxInfo> {
    return await sandboxInfo(this.#host, await this.#settled())
  }

  exec(command: string | readonly string[], options: ExecOptions = {}): Job {
    return this.#start(options, () => (typeof command === 'string' ? { shell: command } : { argv: [...command] }))
  }

  run(command?: readonly string[], options: ExecOptions = {}): Job {
    return this.#start(options, ({ image: { config, reference } }) => {
      const argv = [...config.entrypoint, ...(command ?? config.cmd)]
      if (argv.length === 0)
        throw new BandSoxError('bad-request', `image ${reference} names no command to run: give one`)
      const stopSignal = parseSignal(config.stopSignal)
      return { argv, ...(stopSignal !== undefined && { stopSignal }) }
    })
  }

  async stop(options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#exclusively('stop', async (record) => {
      await this.#write({ ...record, state: stateNow('stopping') })
      const machine = await this.#host.vmm.attach(this.#directory)
      const agent = this.#agentOf(record)
      try {
        // A paused guest hears nobody, and what it has not written would be lost.
        if (record.state.kind === 'paused') await machine.resume()
        const exit = await stopMachine(machine, agent, {
          debug: this.#host.debug,
          signal: options.signal,
        })
        this.#host.debug(`stopped ${this.id}: ${JSON.stringify(exit)}`)
      } finally {
        machine.close()
        this.#closeAgent()
      }
      await this.#write({ ...(await releaseNumbers(this.#host, record)), state: stateNow('stopped') })
    })
  }

  async kill(): Promise<void> {
    await this.#exclusively('stop', async (record) => {
      await killVmm(this.#host, this.#directory)
      this.#closeAgent()
      await this.#write({ ...(await releaseNumbers(this.#host, record)), state: stateNow('stopped') })
    })
  }

  async pause(): Promise<void> {
    await this.#exclusively('pause', async (record) => {
      // Connections do not outlive a pause on every VMM, and nobody is told: they are closed first.
      this.#closeAgent(new BandSoxError('link-lost', `sandbox ${this.id} was paused`))
      await this.#withMachine((machine) => machine.pause())
      await this.#write({ ...record, state: stateNow('paused') })
    })
  }

  async resume(): Promise<void> {
    await this.#exclusively('resume', async (record) => {
      await this.#withMachine((machine) => machine.resume())
      await this.#write({ ...record, state: stateNow('running') })
    })
  }

  async delete(options: { force?: boolean } = {}): Promise<void> {
    const unlock = await this.#lock('delete')
    try {
      const record = await this.#record()
      if (options.force !== true) requireAllowed('delete', this.id, await this.#trueState(record))
      this.#closeAgent()
      await destroy(this.#host, record)
    } finally {
      await unlock()
    }
  }

  async *logs(options: { follow?: boolean; signal?: AbortSignal } = {}): AsyncGenerator<Uint8Array> {
    await this.#record() // the error for a sandbox that is not there
    yield* readConsole(this.#directory, options)
  }

  /** Lets go of the sandbox; one that this program created is removed. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closeAgent()
    if (!this.#isOwned) return
    try {
      await this.delete({ force: true })
    } catch (error) {
      // Somebody removed it already, which is what was wanted.
      if (!(error instanceof BandSoxError && error.code === 'not-found')) throw error
    }
  }

  /** Lets go without removing: the sandbox outlives this program. */
  detach(): void {
    this.#closeAgent()
  }

  get #directory(): string {
    return this.#host.store.directoryOf(this.id)
  }

  #start(
    options: ExecOptions,
    command: (record: SandboxRecord) => Pick<ExecRequest, 'argv' | 'shell' | 'stopSignal'>,
  ): Job {
    const { input, signal } = options
    // The request needs the record, which is read with the agent: it is completed in place before it is sent.
    const request: ExecRequest = {}
    const prepare = async () => {
      const record = await this.#allowed('exec')
      Object.assign(request, command(record), requestOf(record, options))
      return this.#agentOf(record)
    }
    return startJob(prepare, request, {
      ...(input !== undefined && { input }),
      ...(signal !== undefined && { signal }),
    })
  }

  /** The next operation makes a new one: the port may have changed by then. */
  #closeAgent(reason?: unknown): void {
    this.#agent?.close(reason)
    this.#agent = undefined
  }

  async #agentFor(operation: Operation): Promise<Agent> {
    return this.#agentOf(await this.#allowed(operation))
  }

  #agentOf(record: SandboxRecord): Agent {
    this.#agent ??= new Agent(
      record.machine === undefined || record.port === null
        ? []
        : this.#host.vmm.links(this.#directory, record.machine, record.port),
    )
    this.#agent.onRefused(() => this.#replaceDeadShim())
    return this.#agent
  }

  /** The links lead through the shim. @returns True when it had died and another stands in its place. */
  async #replaceDeadShim(): Promise<boolean> {
    if ((await readRun(this.#directory)).shimAlive) return false
    const settled = await settle(this.#host, await this.#record())
    return settled?.state.kind === 'running'
  }

  async #allowed(operation: Operation): Promise<SandboxRecord> {
    const record = await this.#record()
    requireAllowed(operation, this.id, record.state)
    return record
  }

  async #record(): Promise<SandboxRecord> {
    const record = await this.#host.store.read(this.id)
    if (record === undefined) throw this.#notFound()
    return record
  }

  async #settled(): Promise<SandboxRecord> {
    const settled = await settle(this.#host, await this.#record())
    if (settled === undefined) throw this.#notFound()
    return settled
  }

  /** The state with a VMM's unnoticed end taken into account; for use under the lock, where `settle` cannot act. */
  async #trueState(record: SandboxRecord): Promise<SandboxState> {
    if (record.state.kind !== 'running' && record.state.kind !== 'paused') return record.state
    const { vmmAlive, exit } = await readRun(this.#directory)
    return vmmAlive ? record.state : stateAfterExit(exit)
  }

  async #write(record: SandboxRecord): Promise<void> {
    await this.#host.store.write(record)
  }

  async #exclusively(operation: Operation, work: (record: SandboxRecord) => Promise<void>): Promise<void> {
    await this.#settled()
    const unlock = await this.#lock(operation)
    try {
      await work(await this.#allowed(operation))
    } finally {
      await unlock()
    }
  }

  async #lock(operation: string): Promise<() => Promise<void>> {
    await this.#record()
    try {
      return await lockOperation(this.#directory, operation)
    } catch (error) {
      if (isSystemError(error, 'ENOENT')) throw this.#notFound() // removed just now
      throw error
    }
  }

  async #withMachine(work: (machine: Awaited<ReturnType<Host['vmm']['attach']>>) => Promise<void>): Promise<void> {
    const machine = await this.#host.vmm.attach(this.#directory)
    try {
      await work(machine)
    } finally {
      machine.close()
    }
  }

  #notFound(): BandSoxError {
    return new BandSoxError('not-found', `there is no sandbox ${this.id}: it was removed`)
  }
}

/** The image's settings, the sandbox's, the call's: the later ones win. */
function requestOf({ image: { config }, env }: SandboxRecord, options: ExecOptions): Partial<ExecRequest> {
  const ofImage = config.env.map((entry): [string, string] => {
    const [name = '', ...value] = entry.split('=')
    return [name, value.join('=')]
  })
  const cwd = options.cwd ?? config.workingDir
  const user = options.user ?? config.user
  return {
    env: { ...Object.fromEntries(ofImage), ...env, ...options.env },
    ...(cwd !== '' && { cwd }),
    // The image promises it, and its layers may lack it; engines make it then.
    ...(options.cwd === undefined && cwd !== '' && { makeCwd: true }),
    ...(user !== '' && { user }),
    ...(options.timeoutMs !== undefined && { timeoutMs: options.timeoutMs }),
    ...(options.pty !== undefined && { pty: options.pty }),
  }
}

export async function sandboxInfo(host: Host, record: SandboxRecord): Promise<SandboxInfo> {
  const directory = host.store.directoryOf(record.id)
  const { run, vmmAlive } = await readRun(directory)
  const { machine, cid, port } = record
  return {
    id: record.id,
    name: record.name,
    image: record.image.reference,
    state: record.state,
    vcpu: record.vcpu,
    memoryMib: record.memoryMib,
    diskMib: record.diskMib,
    vmm: machine === undefined ? '' : `${machine.vmm} ${machine.version}`,
    accelerator: machine?.accelerator ?? '',
    vsock: machine?.vsock && cid !== null && port !== null ? { cid, port, backend: machine.vsock.backend } : null,
    vmmPid: vmmAlive && run !== undefined ? run.vmm.pid : null,
    createdAt: record.createdAt,
    directory,
    timings: record.timings,
  }
}
