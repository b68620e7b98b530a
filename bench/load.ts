/** The manager's own time to load a state: from the call of `load` until Firecracker is told, and until it has answered, with a stand-in. */
import { chown, link, mkdir, readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import type { MachineSpec } from '../packages/bandsox/src/vmm/vmm.js'
import { copySparse, createSandbox, defaultLimits, endMachine, openHost, readConfig, stateNow } from './internals.js'
import { figure, type Report } from './report.js'
import { loggedAt, type StandIn, standInFirecracker } from './stand-in.js'
import { quantile } from './statistics.js'

const COUNT = 60
const QUICK_COUNT = 20
const WARM_UP = 3
const TARGET_MS = 10
const CID = 500

interface Round {
  /** The disk, which a clone on another VMM than Firecracker would not copy. */
  diskMs: number
  /** To the VMM's main, which logs its first line. */
  toVmmMs: number
  /** From there until it has taken the request. */
  toRequestMs: number
  /** From there until the machine runs, and is known to. */
  toRunningMs: number
}

interface LoadOptions {
  quick: boolean
  signal: AbortSignal
}

export async function* measureLoad(options: LoadOptions): AsyncGenerator<Report> {
  const isRoot = process.getuid?.() === 0
  for (const jailer of isRoot ? (['off', 'on'] as const) : (['off'] as const)) {
    await using standIn = await standInFirecracker(jailer)
    yield await measureWith(standIn, options)
  }
}

async function measureWith(standIn: StandIn, { quick, signal }: LoadOptions): Promise<Report> {
  const count = quick ? QUICK_COUNT : COUNT
  const { storage, shimPath } = readConfig()
  const host = await openHost({
    ...{ storage, shimPath, ...standIn.config },
    warn: (message) => console.error(`! ${message}`),
  })
  const { record, agent } = await createSandbox(host, 'bandsox/base', { diskMib: 64 })
  agent.close()
  const directory = host.store.directoryOf(record.id)
  const stateFolder = `${directory}-state`
  const rounds: Round[] = []
  try {
    await mkdir(stateFolder, { mode: 0o700 })
    const machine = await host.vmm.attach(directory)
    await machine.pause()
    const state = await machine.saveState(stateFolder, 'full')
    machine.close()
    for (let round = -WARM_UP; round < count; round++) {
      signal.throwIfAborted()
      const own = `${directory}-${round + WARM_UP}`
      const spec = await machineIn(own, directory, record.port ?? 0)
      const began = Date.now()
      const started = performance.now()
      await copySparse(path.join(directory, 'overlay.ext4'), path.join(own, 'overlay.ext4'))
      if (process.getuid?.() === 0) await chown(path.join(own, 'overlay.ext4'), spec.uid, spec.uid)
      const copied = performance.now()
      const calledAt = performance.timeOrigin + copied
      const { machine: loaded } = await host.vmm.load(spec, state)
      const done = performance.timeOrigin + performance.now()
      const log = await readFile(path.join(own, 'firecracker.log'), 'latin1')
      const [main, request] = [
        loggedAt(log, /Running Firecracker/),
        loggedAt(log, /"PUT" request on "\/snapshot\/load"/),
      ]
      await loaded.signal('SIGKILL')
      await loaded.exitedWithin(10_000)
      loaded.close()
      await rm(own, { recursive: true })
      if (round < 0 || main < began) continue
      rounds.push({
        diskMs: copied - started,
        toVmmMs: main - calledAt,
        toRequestMs: request - main,
        toRunningMs: done - request,
      })
    }
  } finally {
    await rm(stateFolder, { recursive: true, force: true })
    await endMachine(host, record)
    await host.store.transition(record.id, { state: stateNow('stopped'), releaseNumbers: true })
    await host.store.remove(record.id)
    host.store.close()
  }
  return reportOn(rounds, standIn.name)
}

/** A machine that is no sandbox, with all files but its disk. */
async function machineIn(own: string, directory: string, port: number): Promise<MachineSpec> {
  await mkdir(own, { mode: 0o700 })
  for (const name of ['kernel', 'initramfs', 'root.squashfs'])
    await link(path.join(directory, name), path.join(own, name))
  return {
    ...{ sandboxId: path.basename(own), directory: own, vcpu: 1, memoryMib: 256, hostname: 'loaded', vsock: 'auto' },
    files: { kernel: 'kernel', initramfs: 'initramfs', root: 'root.squashfs', overlay: 'overlay.ext4' },
    ...{ cid: CID, port, uid: 1_900_100_000 + CID, limits: { ...defaultLimits, processes: null } },
  }
}

function reportOn(rounds: readonly Round[], name: string): Report {
  const row = (stage: string, of: (round: Round) => number, about = ''): string[] => [
    stage,
    ...[0.5, 0.95, 0].map((fraction) => figure(quantile(rounds.map(of), fraction))),
    about,
  ]
  const all = (round: Round) => round.toVmmMs + round.toRequestMs + round.toRunningMs
  return {
    subject: 'load',
    method: `Vmm.load on a stand-in for ${name}, ${rounds.length} times after ${WARM_UP} in one process; ms`,
    columns: ['stage', 'p50', 'p95', 'min', ''],
    rows: [
      row('copy of the disk', ({ diskMs }) => diskMs, 'as much as was written to it; no part of the below'),
      row('folder, shim, jailer', ({ toVmmMs }) => toVmmMs, "from the call to the VMM's first line of log"),
      row('API', ({ toRequestMs }) => toRequestMs, 'until it listens, is found, and has the request'),
      row(
        'answer, look',
        ({ toRunningMs }) => toRunningMs,
        'until it has loaded, which takes the stand-in part of it, and is known to run',
      ),
      row('all but the copy', all),
    ],
    verdicts: [
      {
        figure: 'load without the copy of the disk, p50',
        value: quantile(rounds.map(all), 0.5),
        unit: ' ms',
        target: { kind: 'at most', value: TARGET_MS },
      },
    ],
    measurements: { rounds },
  }
}
