/**
 * The manager's own time to create a sandbox from a template: from the call of `create` until it is given out, with a stand-in for
 * Firecracker, without the copy of the disk, and without the processes that come of it: the shim, and by it the VMM.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import {
  createSandbox,
  createSandboxRecord,
  destroy,
  makeTemplate,
  openHost,
  quickStart,
  readConfig,
} from './internals.js'
import { figure, type Report } from './report.js'
import { loggedAt, type StandIn, standInFirecracker } from './stand-in.js'
import { quantile } from './statistics.js'

const IMAGE = 'bandsox/base'
const SHAPE = { memoryMib: 256, diskMib: 64 }
const COUNT = 60
const QUICK_COUNT = 30
const WARM_UP = 5
const TARGET_MS = 10

/** In their order; each begins where the one before ends. */
const STAGES = {
  'image, template': 'options, hold on the images, look-up, key, manifest, check of the files, fingerprint, free space',
  row: 'record in the database, the directory',
  disk: 'the copy of the disk, and beside it the links of the boot files',
  numbers: 'memory of the host, CID and port',
  'VM user': "specification, the disk's owner",
  'folder, shim.json': 'links of what Firecracker may reach, configuration',
  spawn: "Node's fork of itself, whose memory it copies the tables of",
  'shim, VMM': 'from there until the VMM listens at its API socket: the start of the shim, and of the stand-in by that',
  API: 'until that is found, and it has the request',
  'VMM loads': 'until it has answered',
  look: 'limits of the disks, and what the shim knows of the machine',
  'hello, identity': 'fingerprint, connection, entropy, clock, names, the new port',
  commit: 'on record, for good',
} as const
type Stage = keyof typeof STAGES
const NOT_OURS: readonly Stage[] = ['disk', 'shim, VMM', 'VMM loads']

type Round = Record<Stage, number> & { cpuMs: number }
type Host = Awaited<ReturnType<typeof openHost>>

interface RestoreOptions {
  quick: boolean
  signal: AbortSignal
}

export async function* measureRestore(options: RestoreOptions): AsyncGenerator<Report> {
  const isRoot = process.getuid?.() === 0
  for (const jailer of isRoot ? (['off', 'on'] as const) : (['off'] as const)) {
    await using standIn = await standInFirecracker(jailer)
    yield await measureWith(standIn, options)
  }
}

async function measureWith(standIn: StandIn, { quick, signal }: RestoreOptions): Promise<Report> {
  const count = quick ? QUICK_COUNT : COUNT
  const { storage, shimPath } = readConfig()
  const host = await openHost({
    ...{ storage, shimPath, ...standIn.config, templates: true },
    warn: (message) => {
      if (!/no process stands still/.test(message)) console.error(`! ${message}`)
    },
  })
  const rounds: Round[] = []
  try {
    await makeTemplate(host, await createSandboxRecord(host, IMAGE, SHAPE), signal)
    for (let round = -WARM_UP; round < count; round++) {
      signal.throwIfAborted()
      const measured = await createOnce(host)
      if (round < 0) continue
      rounds.push(measured)
    }
  } finally {
    for (const { id } of await host.store.snapshots.list(['template'])) await host.store.snapshots.remove(id)
    host.store.close()
  }
  return reportOn(standIn.name, rounds)
}

async function createOnce(host: Host): Promise<Round> {
  const at: Partial<Record<Stage, number>> = {}
  const now = () => performance.timeOrigin + performance.now()
  const ends = (stage: Stage) => {
    at[stage] ??= now()
  }
  const watched = watchedHost(host, ends)
  const cpu = process.cpuUsage()
  const began = now()
  const { record, agent } = await createSandbox(watched, IMAGE, SHAPE, quickStart(watched, undefined))
  ends('commit')
  const { user, system } = process.cpuUsage(cpu)
  agent.close()
  if (record.restoredFrom === undefined) throw new Error('it was not created from a template')
  const log = await readFile(path.join(host.store.directoryOf(record.id), 'firecracker.log'), 'latin1')
  at['shim, VMM'] = loggedAt(log, /Listening on API socket/)
  at.API = loggedAt(log, /"PUT" request on "\/snapshot\/load"/)
  const [, answers = ''] = log.split('"/snapshot/load"')
  at['VMM loads'] = loggedAt(answers.split('\n').slice(0, 2).join('\n'), /executed successfully/)
  const claim = await host.store.claim(record.id, 'delete')
  if (claim !== undefined) await destroy(host, claim.record)
  let before = began
  const durations = Object.keys(STAGES).map((stage) => {
    const end = at[stage as Stage] ?? Number.NaN
    const duration = end - before
    before = end
    return [stage, duration]
  })
  return { ...(Object.fromEntries(durations) as Record<Stage, number>), cpuMs: (user + system) / 1000 }
}

/** The host itself, with an ear at each call that begins or ends a stage. */
function watchedHost(host: Host, ends: (stage: Stage) => void): Host {
  const { store, vmm } = host
  return {
    ...host,
    store: changed(store, {
      insert: async (...args) => {
        ends('image, template')
        return await store.insert(...args)
      },
      makeDirectory: async (...args) => {
        await store.makeDirectory(...args)
        ends('row')
      },
      takeNumbers: async (...args) => {
        ends('disk')
        const numbers = await store.takeNumbers(...args)
        ends('numbers')
        return numbers
      },
      transition: async (...args) => {
        ends('hello, identity')
        return await store.transition(...args)
      },
    }),
    vmm: {
      ...vmm,
      load: async (...args) => {
        ends('VM user')
        // Told just before the fork, which returns before any microtask has its turn.
        const spawning = () => {
          ends('folder, shim.json')
          queueMicrotask(() => ends('spawn'))
        }
        subscribe('child_process', spawning)
        try {
          const loaded = await vmm.load(...args)
          ends('look')
          return loaded
        } finally {
          unsubscribe('child_process', spawning)
        }
      },
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

function reportOn(name: string, rounds: readonly Round[]): Report {
  const row = (stage: string, list: readonly number[], about = ''): string[] => [
    stage,
    ...[0.5, 0.95, 0].map((fraction) => figure(quantile(list, fraction))),
    about,
  ]
  const stages = Object.keys(STAGES) as Stage[]
  const ours = stages.filter((stage) => !NOT_OURS.includes(stage))
  const own = rounds.map((round) => ours.reduce((sum, stage) => sum + round[stage], 0))
  return {
    subject: 'restore',
    method: `create('${IMAGE}') from a template, with a stand-in for ${name}, ${rounds.length} times after ${WARM_UP} in one process; ms`,
    columns: ['stage', 'p50', 'p95', 'min', ''],
    rows: [
      ...stages.map((stage) =>
        row(
          stage,
          rounds.map((round) => round[stage]),
          STAGES[stage],
        ),
      ),
      row("the manager's own", own, `all but ${NOT_OURS.join('; ')}`),
      row(
        'its processor time',
        rounds.map(({ cpuMs }) => cpuMs),
        'user and system, of all of the above but shim and VMM',
      ),
    ],
    verdicts: [
      {
        figure: "the manager's own share of a restore, without the copy of the disk, p50",
        value: quantile(own, 0.5),
        unit: ' ms',
        target: { kind: 'at most', value: TARGET_MS },
      },
    ],
    measurements: { rounds },
  }
}
