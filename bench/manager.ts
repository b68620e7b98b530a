/**
 * The manager's own time: from the call of `create` to the first instruction of the VMM's main, with a stand-in for QEMU; to the start of
 * the machine with one for Firecracker, whose main reads the machine's configuration.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { stat } from 'node:fs/promises'
import { promisify } from 'node:util'
import { createSandbox, openHost, readConfig } from './internals.js'
import { figure, type Report } from './report.js'
import { monotonicMs, type StandIn, standInFirecracker, standInVmm } from './stand-in.js'
import { quantile } from './statistics.js'

const IMAGE = 'bandsox/base'
const COUNT = 100
const QUICK_COUNT = 50
const WARM_UP = 5
const TARGET_MS = 15

/** In their order; each begins where the one before ends. */
const STAGES = {
  checks: 'options, limits, free space',
  image: 'hold on the images, look-up',
  row: 'record in the database',
  directory: '',
  disks: 'link to the image, copy of the empty disk',
  'boot files': 'check and links of kernel and initramfs',
  numbers: 'memory of the host, CID and port',
  'VM user': "specification, the disk's owner",
  'shim.json': 'vsock backend, command line, configuration',
  spawn: "Node's fork of itself, whose memory it copies the tables of",
  'shim, daemon, VMM': 'from there to the main of the VMM',
} as const
type Stage = keyof typeof STAGES
const LAST_STAGE = 'shim, daemon, VMM' satisfies Stage
type Host = Awaited<ReturnType<typeof openHost>>

/** How long each stage took, until the last has ended: what comes then is the clearing up. */
class Timeline {
  readonly began = monotonicMs()
  readonly stages: Partial<Record<Stage, number>> = {}
  #before = this.began

  end(stage: Stage, at = monotonicMs()): void {
    if (this.stages[LAST_STAGE] !== undefined) return
    this.stages[stage] = (this.stages[stage] ?? 0) + at - this.#before
    this.#before = at
  }

  get totalMs(): number {
    return this.#before - this.began
  }
}

interface Round {
  totalMs: number
  stages: Partial<Record<Stage, number>>
}

interface ManagerOptions {
  quick: boolean
  signal: AbortSignal
}

export async function* measureManager(options: ManagerOptions): AsyncGenerator<Report> {
  const isRoot = process.getuid?.() === 0
  const standIns = [standInVmm, () => standInFirecracker('off'), ...(isRoot ? [() => standInFirecracker('on')] : [])]
  for (const makeStandIn of standIns) {
    await using standIn = await makeStandIn()
    yield await measureWith(standIn, options)
  }
}

async function measureWith(standIn: StandIn, { quick, signal }: ManagerOptions): Promise<Report> {
  const count = quick ? QUICK_COUNT : COUNT
  const { storage, shimPath } = readConfig()
  const host = await openHost({
    ...{ storage, shimPath, ...standIn.config },
    warn: (message) => console.error(`! ${message}`),
  })
  const rounds: Round[] = []
  const startUps: number[] = []
  const shims: number[] = []
  try {
    for (let round = -WARM_UP; round < count; round++) {
      signal.throwIfAborted()
      const measured = await createToMain(host, standIn)
      const startUpMs = await standIn.startUpMs()
      const shimMs = await timeOfShim(shimPath)
      if (round < 0) continue
      rounds.push(measured)
      startUps.push(startUpMs)
      shims.push(shimMs)
    }
  } finally {
    host.store.close()
  }
  return reportOn(standIn, rounds, startUps, shims)
}

/** The sandbox is given up as soon as its VMM runs: the stand-in has no agent. Nothing of it is left. */
async function createToMain(host: Host, standIn: StandIn): Promise<Round> {
  const timeline = new Timeline()
  const enough = new AbortController()
  const reason = new Error('the VMM has begun')
  let directory = ''
  const watched = watchedHost(host, timeline, async (vmDirectory) => {
    directory = vmDirectory
    timeline.end(LAST_STAGE, await standIn.began(directory, timeline.began))
    enough.abort(reason)
  })
  await assert.rejects(createSandbox(watched, IMAGE, { signal: enough.signal }), reason)
  await assert.rejects(stat(directory), { code: 'ENOENT' })
  return { totalMs: timeline.totalMs, stages: timeline.stages }
}

/** The host itself, with an ear at each call that begins or ends a stage. */
function watchedHost(host: Host, timeline: Timeline, started: (directory: string) => Promise<void>): Host {
  const { store, images, vmm } = host
  const before =
    <A extends unknown[], R>(stage: Stage, call: (...args: A) => R) =>
    (...args: A): R => {
      timeline.end(stage)
      return call(...args)
    }
  return {
    ...host,
    store: changed(store, {
      insert: before('image', store.insert.bind(store)),
      makeDirectory: before('row', store.makeDirectory.bind(store)),
      takeNumbers: async (...args) => {
        const numbers = await store.takeNumbers(...args)
        timeline.end('numbers')
        return numbers
      },
    }),
    images: changed(images, {
      hold: before('checks', async (signal) => before('disks', await images.hold(signal))),
      diskOf: before('directory', images.diskOf.bind(images)),
    }),
    configuration: before('boot files', host.configuration),
    vmm: {
      ...vmm,
      start: before('VM user', async (spec) => {
        // Told just before the fork, which returns before any microtask has its turn.
        const spawning = () => {
          timeline.end('shim.json')
          queueMicrotask(() => timeline.end('spawn'))
        }
        subscribe('child_process', spawning)
        try {
          const machine = await vmm.start(spec)
          await started(spec.directory)
          return machine
        } finally {
          unsubscribe('child_process', spawning)
        }
      }),
    },
  }
}

/** The object with some of its methods replaced; the others are called on the object itself, which has private fields. */
function changed<T extends object>(object: T, methods: Partial<T>): T {
  return new Proxy(object, {
    get(target, name) {
      const own: unknown = Reflect.get(methods, name) ?? Reflect.get(target, name, target)
      return typeof own === 'function' ? own.bind(target) : own
    },
  })
}

/** How long a shim takes that only says its version: what any program of its size needs. */
async function timeOfShim(shimPath: string): Promise<number> {
  const began = monotonicMs()
  await promisify(execFile)(shimPath, ['version'])
  return monotonicMs() - began
}

function reportOn(
  { name }: StandIn,
  rounds: readonly Round[],
  startUps: readonly number[],
  shims: readonly number[],
): Report {
  // A Firecracker's own part is read from the row of what it takes to start at all: it cannot be told from the rest.
  const startUpMs = name === 'QEMU' ? quantile(startUps, 0.5) : 0
  const own = rounds.map(({ totalMs }) => totalMs - startUpMs)
  const row = (name: string, list: readonly number[], about = ''): string[] => [
    name,
    ...[0.5, 0.95, 0].map((fraction) => figure(quantile(list, fraction))),
    about,
  ]
  return {
    subject: 'manager',
    method: `create('${IMAGE}') to the ${name === 'QEMU' ? 'main' : 'machine’s start'} of a stand-in for ${name}, ${rounds.length} times after ${WARM_UP} in one process; ms`,
    columns: ['stage', 'p50', 'p95', 'min', ''],
    rows: [
      ...Object.entries(STAGES).map(([stage, about]) =>
        row(
          stage,
          rounds.map(({ stages }) => stages[stage as Stage] ?? Number.NaN),
          about,
        ),
      ),
      row(
        'all',
        rounds.map(({ totalMs }) => totalMs),
      ),
      row(
        "the stand-in's own start",
        startUps,
        name === 'QEMU'
          ? 'from its exec to its main; its p50 is subtracted below'
          : 'to say its version, from spawn to end: no part of the above',
      ),
      row('all but that', own),
      row('a shim that says its version', shims, 'from spawn to end: no part of the above'),
    ],
    verdicts: [
      {
        figure:
          name === 'QEMU'
            ? "create to the VMM's main, without the stand-in's own start, p50"
            : 'create to InstanceStart, p50',
        value: quantile(own, 0.5),
        unit: ' ms',
        target: { kind: 'at most', value: TARGET_MS },
      },
    ],
    measurements: { rounds, startUps, shims },
  }
}
