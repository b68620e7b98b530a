/** A sandbox of this host. */
import { setTimeout as delay } from 'node:timers/promises'
import {
  BandSoxError,
  type ExecOptions,
  type Files,
  type ForkOptions,
  type ForwardOptions,
  type Job,
  type JobInfo,
  type LinkReport,
  type Operation,
  type PortForward,
  requireAllowed,
  type Sandbox,
  type SandboxChanges,
  type SandboxInfo,
  type SandboxMetrics,
  type SandboxState,
  type SnapshotInfo,
  type SnapshotOptions,
  type StartOptions,
  type StateName,
} from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import { listGuestJobs } from '../guest/guest-jobs.js'
import { attachToJob, type ExecRequest, startJob } from '../guest/job.js'
import { parseSignal } from '../guest/signal.js'
import { readRun, standsStill } from '../process/shim.js'
import { interruptedBy, isInProgress } from '../store/operation.js'
import type { SandboxRecord } from '../store/record.js'
import type { Claim } from '../store/sandbox-store.js'
import type { Machine } from '../vmm/vmm.js'
import { agentOf } from './agent-of.js'
import { changeSandbox } from './change.js'
import { readConsole } from './console.js'
import { checkedName } from './description.js'
import { RESUME_BYTES, requireFreeSpace } from './free-space.js'
import type { Host } from './host.js'
import { reportLinks } from './link-report.js'
import { LocalFiles } from './local-files.js'
import { forwardPort } from './port-forward.js'
import { recover } from './recover.js'
import { sandboxInfo } from './sandbox-info.js'
import {
  claimForEnd,
  claimSettled,
  destroy,
  endMachine,
  settle,
  settleAndLook,
  stateNow,
  vsockIsGone,
} from './settle.js'
import { forkSandbox } from './snapshot/fork.js'
import { hibernateSandbox, wakeSandbox } from './snapshot/hibernate.js'
import { dropHibernated } from './snapshot/hibernated-files.js'
import { snapshotInfo } from './snapshot/snapshot-info.js'
import { freezeForPause, thaw, thawAfterPause } from './snapshot/standstill.js'
import { takeSnapshot } from './snapshot/take.js'
import { startSandbox } from './start.js'
import { stopMachine } from './stop.js'
import { vmmLog } from './vmm-log.js'
import { waitForState } from './wait.js'

/** A guest that waits for its disk tries again at once. */
const STALL_MS = 100
const JOBS_TIMEOUT_MS = 10_000
/** Operations that a hibernated sandbox is woken up for. */
const WAKING: readonly Operation[] = ['exec', 'transfer']
const WAKE_PATIENCE_MS = 60_000
const WAKE_POLL_MS = 20

export class LocalSandbox implements Sandbox {
  readonly id: string
  readonly files: Files
  readonly #host: Host
  /** This program made the sandbox, so disposing removes it. */
  readonly #isOwned: boolean
  #agent: Agent | undefined
  /** The start of the machine that `#agent` belongs to. */
  #agentOfStart: string | undefined

  constructor(host: Host, id: string, made?: { agent: Agent; record: SandboxRecord }) {
    this.#host = host
    this.id = id
    this.#isOwned = made !== undefined
    if (made !== undefined) this.#keepAgent(made.agent, made.record)
    this.files = new LocalFiles((signal) => this.#agentFor('transfer', signal), host.info)
  }

  async info(): Promise<SandboxInfo> {
    const found = await settleAndLook(this.#host, await this.#record())
    if (found === undefined) throw this.#notFound()
    return await sandboxInfo(this.#host, found.record, found.run)
  }

  exec(command: string | readonly string[], options: ExecOptions = {}): Job {
    return this.#startJob(options, () => (typeof command === 'string' ? { shell: command } : { argv: [...command] }))
  }

  run(command?: readonly string[], options: ExecOptions = {}): Job {
    return this.#startJob(options, ({ image: { config, reference } }) => {
      const argv = [...config.entrypoint, ...(command ?? config.cmd)]
      if (argv.length === 0)
        throw new BandSoxError('bad-request', `image ${reference} names no command to run: give one`)
      const stopSignal = parseSignal(config.stopSignal)
      return { argv, ...(stopSignal !== undefined && { stopSignal }) }
    })
  }

  async jobs({ signal }: { signal?: AbortSignal } = {}): Promise<JobInfo[]> {
    const agent = await this.#agentFor('exec')
    const jobs = await listGuestJobs(agent, { timeoutMs: JOBS_TIMEOUT_MS, ...(signal !== undefined && { signal }) })
    return jobs.map(({ job, pid, command, startedMs, from, to, ended, pty, attached }) => ({
      ...{ id: job, pid, command, startedMs, keptFrom: from, outputBytes: to },
      ...{ hasEnded: ended, hasTerminal: pty, isAttached: attached },
    }))
  }

  attach(job: string, options: Pick<ExecOptions, 'signal' | 'link'> = {}): Job {
    return attachToJob((signal) => this.#agentFor('exec', signal), job, options)
  }

  async forward(options: ForwardOptions): Promise<PortForward> {
    await this.#allowed('exec') // rather now than at the first connection
    return await forwardPort((signal) => this.#agentFor('exec', signal), options)
  }

  async start(options: StartOptions = {}): Promise<void> {
    await this.#exclusively('start', (record) => this.#startMachine(record, options))
  }

  async snapshot(options: SnapshotOptions = {}): Promise<SnapshotInfo> {
    return await this.#exclusively('snapshot', async (record) => {
      const taken = await takeSnapshot(this.#host, record, this.#agentOf(record), options)
      return await snapshotInfo(this.#host, taken.record, taken.manifest)
    })
  }

  async fork(options: ForkOptions = {}): Promise<LocalSandbox[]> {
    const claim = await this.#claimFor('fork')
    try {
      const agent = this.#agentOf(claim.record)
      const children = await forkSandbox(this.#host, claim.record, agent, options, () => claim.release())
      return children.map((child) => new LocalSandbox(this.#host, child.record.id, child))
    } finally {
      await claim.release()
    }
  }

  async hibernate({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    const claim = await this.#claimFor('hibernate')
    try {
      await hibernateSandbox(this.#host, claim.record, this.#agentOf(claim.record), signal)
      this.#closeAgent()
    } catch (error) {
      // Its machine could not be ended, and is nobody's any more: whoever comes next is to end it.
      if ((await this.#host.store.read(this.id))?.state.kind === 'hibernated') await claim.abandon()
      else await claim.release()
      throw error
    }
    await claim.release()
  }

  async restart(options: StartOptions = {}): Promise<void> {
    await this.#exclusively('restart', async (record) => {
      const isAtRest = record.state.kind === 'stopped' || record.state.kind === 'failed'
      const stopped = isAtRest ? record : await this.#stopMachine(record, options.signal)
      await this.#startMachine(stopped, options)
    })
  }

  async stop(options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#exclusively('stop', (record) => this.#stopMachine(record, options.signal))
  }

  async kill(): Promise<void> {
    requireAllowed('stop', this.id, (await this.#record()).state)
    const claim = await claimForEnd(this.#host, this.id, 'stop')
    try {
      requireAllowed('stop', this.id, claim.record.state)
      await endMachine(this.#host, claim.record)
      this.#closeAgent()
      await this.#host.store.transition(this.id, { state: stateNow('stopped'), releaseNumbers: true })
      await dropHibernated(this.#host, this.id)
      this.#host.info(`killed ${this.id}`)
    } finally {
      await claim.release()
    }
  }

  async pause(): Promise<void> {
    await this.#exclusively('pause', async (record) => {
      const agent = this.#agentOf(record)
      const isFrozen = await freezeForPause(this.#host, this.id, agent)
      // Connections do not outlive a pause on every VMM, and nobody is told: they are closed first, ours here, those of others by the
      // driver. What runs over them goes on when the machine does.
      agent.quiesce(new BandSoxError('link-lost', `sandbox ${this.id} was paused`))
      try {
        await this.#withMachine((machine) => machine.pause())
      } catch (error) {
        if (isFrozen) await thaw(this.#host, this.id, agent)
        throw error
      }
      const machine = record.machine && { ...record.machine, isFrozen }
      await this.#host.store.transition(this.id, {
        state: stateNow('paused'),
        ...(machine !== undefined && { machine }),
      })
      this.#host.info(`paused ${this.id}`)
    })
  }

  async resume(options: StartOptions = {}): Promise<void> {
    await this.#exclusively('resume', async (record) => {
      const { state } = record
      if (state.kind === 'hibernated') {
        await this.#startMachine(record, options)
        return
      }
      if (state.kind === 'paused' && state.reason !== undefined) await this.#resumeStalled(state)
      else {
        await this.#withMachine(async (machine) => {
          await machine.resume()
          await machine.attachVsock() // taken out for a snapshot meanwhile
        })
      }
      await thawAfterPause(this.#host, record, this.#agentOf(record))
      const machine = record.machine && { ...record.machine, isFrozen: false }
      await this.#host.store.transition(this.id, {
        state: stateNow('running'),
        ...(machine !== undefined && { machine }),
      })
      this.#host.info(`resumed ${this.id}`)
    })
  }

  /** Its VMM has paused it, and does so again at once when the reason is still there. */
  async #resumeStalled(state: SandboxState & { kind: 'paused' }): Promise<void> {
    await requireFreeSpace(this.#host.store.root, RESUME_BYTES, `sandbox ${this.id} to run on`)
    await this.#withMachine((machine) => machine.resume())
    await delay(STALL_MS)
    const { status } = await readRun(this.#directory)
    if (status === undefined || status.status === 'running') return
    throw new BandSoxError('no-space', `sandbox ${this.id} was resumed and paused again at once: ${state.reason}`, {
      hint: 'free some: bandsox system df, bandsox system prune',
    })
  }

  async rename(name: string, options: { unique?: boolean } = {}): Promise<void> {
    checkedName(name)
    await this.#exclusively('describe', async () => {
      await this.#host.store.describe(this.id, () => ({ name }), options)
      this.#host.info(`renamed ${this.id} to ${name}`)
    })
  }

  async update(changes: SandboxChanges): Promise<void> {
    await changeSandbox(this.#host, this.id, changes)
  }

  async waitFor(
    states: readonly StateName[],
    options: { timeoutMs?: number; signal?: AbortSignal } = {},
  ): Promise<SandboxState> {
    return await waitForState(this.#host, this.id, states, options)
  }

  async metrics(): Promise<SandboxMetrics> {
    const { machine: facts } = await this.#allowed('metrics')
    const counters = await this.#withMachine((machine) => machine.metrics())
    return {
      vmm: facts === undefined ? '' : `${facts.vmm} ${facts.version}`,
      counters: counters ?? null,
      log: (await vmmLog(this.#directory)) ?? null,
    }
  }

  async links(options: { signal?: AbortSignal } = {}): Promise<LinkReport> {
    return await reportLinks(this.#host, await this.#allowed('exec'), options.signal)
  }

  async delete(options: { force?: boolean } = {}): Promise<void> {
    const force = options.force === true
    // Under the name of a removal only once it is one: should this process die, the next one goes on with it.
    const claim = force ? await claimForEnd(this.#host, this.id, 'end') : await claimSettled(this.#host, this.id, 'end')
    try {
      if (!force) requireAllowed('delete', this.id, claim.record.state)
      await claim.become('delete')
    } catch (error) {
      await claim.release()
      throw error
    }
    this.#closeAgent()
    try {
      await destroy(this.#host, claim.record)
    } catch (error) {
      await claim.abandon()
      throw error
    }
    this.#host.info(`deleted ${this.id}`)
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

  #startJob(
    options: ExecOptions,
    command: (record: SandboxRecord) => Pick<ExecRequest, 'argv' | 'shell' | 'stopSignal'>,
  ): Job {
    const { input, signal, link } = options
    // The request needs the record, which is read with the agent: it is completed in place before it is sent.
    const request: ExecRequest = {}
    const prepare = async () => {
      const record = await this.#allowed('exec', signal)
      Object.assign(request, command(record), requestOf(record, options))
      return this.#agentOf(record)
    }
    return startJob(prepare, request, {
      ...(input !== undefined && { input }),
      ...(signal !== undefined && { signal }),
      ...(link !== undefined && { link }),
    })
  }

  async #startMachine(record: SandboxRecord, options: StartOptions): Promise<void> {
    const isHibernated = record.state.kind === 'hibernated'
    const started = await (isHibernated ? wakeSandbox : startSandbox)(this.#host, record, options)
    this.#keepAgent(started.agent, started.record)
  }

  async #stopMachine(record: SandboxRecord, signal: AbortSignal | undefined): Promise<SandboxRecord> {
    if (record.state.kind === 'hibernated') {
      const given = await this.#host.store.transition(this.id, { state: stateNow('stopped'), isDurable: true })
      await dropHibernated(this.#host, this.id)
      this.#host.info(`stopped ${this.id}: its state was given up`)
      return given
    }
    await this.#host.store.transition(this.id, { state: stateNow('stopping') })
    const machine = await this.#host.vmm.attach(this.#directory)
    try {
      // A paused guest hears nobody, and what it has not written would be lost.
      if (record.state.kind === 'paused') await machine.resume()
      const exit = await stopMachine(machine, this.#agentOf(record), { debug: this.#host.debug, signal })
      this.#host.debug(`stopped ${this.id}: ${JSON.stringify(exit)}`)
    } finally {
      machine.close()
      this.#closeAgent()
    }
    await vsockIsGone(this.#host, record)
    const stopped = await this.#host.store.transition(this.id, { state: stateNow('stopped'), releaseNumbers: true })
    this.#host.info(`stopped ${this.id}`)
    return stopped
  }

  /** The next operation makes a new one: the port may have changed by then. */
  #closeAgent(reason?: unknown): void {
    this.#agent?.close(reason)
    this.#agent = undefined
  }

  async #agentFor(operation: Operation, signal?: AbortSignal): Promise<Agent> {
    return this.#agentOf(await this.#allowed(operation, signal))
  }

  #agentOf(record: SandboxRecord): Agent {
    if (this.#agent !== undefined && this.#agentOfStart === record.machine?.startedAt) return this.#agent
    this.#closeAgent() // of a machine that another process has replaced
    return this.#keepAgent(agentOf(this.#host, record), record)
  }

  #keepAgent(agent: Agent, record: SandboxRecord): Agent {
    if (this.#agent !== undefined && this.#agentOfStart === record.machine?.startedAt) {
      agent.close() // others of this program speak over the one that is there
      return this.#agent
    }
    this.#closeAgent()
    agent.onLost((signal) => recover(this.#host, this.id, signal))
    this.#agentOfStart = record.machine?.startedAt
    this.#agent = agent
    return agent
  }

  async #allowed(operation: Operation, signal?: AbortSignal): Promise<SandboxRecord> {
    const found = await this.#record()
    const record = isAsleep(found) && WAKING.includes(operation) ? await this.#woken(signal) : found
    requireAllowed(operation, this.id, record.state)
    // One whose process was killed may have left the machine frozen, or in the middle of a change.
    const isLeft = record.operation !== undefined && !(await isInProgress(record.operation))
    if (!isLeft && !standsStill(this.#directory)) return record
    const settled = await this.#settled()
    requireAllowed(operation, this.id, settled.state)
    return settled
  }

  /** Whoever uses it wakes it up; of several at once one does, and the others wait until it is itself again. */
  async #woken(signal: AbortSignal | undefined): Promise<SandboxRecord> {
    const deadline = performance.now() + WAKE_PATIENCE_MS
    for (;;) {
      signal?.throwIfAborted()
      const record = await this.#settled()
      if (!isAsleep(record)) return record
      if (record.operation === undefined && performance.now() > deadline)
        throw new BandSoxError('timeout', `sandbox ${this.id} did not wake up within ${WAKE_PATIENCE_MS} ms`)
      if (record.state.kind === 'hibernated' && record.operation === undefined) {
        try {
          await this.resume(signal === undefined ? {} : { signal })
          continue
        } catch (error) {
          // Somebody else was quicker.
          if (!(error instanceof BandSoxError && (error.code === 'busy' || error.code === 'wrong-state'))) throw error
        }
      }
      await delay(WAKE_POLL_MS)
    }
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

  async #exclusively<T>(operation: Operation, work: (record: SandboxRecord) => Promise<T>): Promise<T> {
    const claim = await this.#claimFor(operation)
    try {
      return await work(claim.record)
    } finally {
      await claim.release()
    }
  }

  async #claimFor(operation: Operation): Promise<Claim> {
    requireAllowed(operation, this.id, (await this.#settled()).state) // the plainer of two reasons, when it is busy as well
    const claim = await claimSettled(this.#host, this.id, operation)
    try {
      requireAllowed(operation, this.id, claim.record.state)
      return claim
    } catch (error) {
      await claim.release()
      throw error
    }
  }

  async #withMachine<T>(work: (machine: Machine) => Promise<T>): Promise<T> {
    const machine = await this.#host.vmm.attach(this.#directory)
    try {
      return await work(machine)
    } finally {
      machine.close()
    }
  }

  #notFound(): BandSoxError {
    return new BandSoxError('not-found', `there is no sandbox ${this.id}: it was removed`)
  }
}

/** Also while it falls asleep, and while it wakes up: until its guest knows who it is, nobody but who woke it may speak with it. */
const isAsleep = ({ state, machine, operation }: SandboxRecord): boolean =>
  state.kind === 'hibernated' ||
  (state.kind === 'running' && (machine?.pendingPort !== undefined || interruptedBy(operation?.name) === 'hibernate'))

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
