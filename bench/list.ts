/** How long a list of a thousand sandboxes takes, fifty of which run. */
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { openBandSox } from 'bandsox'
import { temporaryFolder } from './host-file.js'
import {
  defaultLimits,
  endMachine,
  machineFiles,
  newSandboxId,
  openHost,
  readConfig,
  stateNow,
  unstarted,
} from './internals.js'
import { figure, type Report } from './report.js'
import { standInVmm } from './stand-in.js'
import { quantile } from './statistics.js'

const RECORDS = 1_000
const RUNNING = 50
/** Of the others, those whose machine has not just been stopped. */
const FAILED = 50
const COUNT = 50
const WARM_UP = 5
const PROCESSES = 15
const QUICK_PROCESSES = 5
const TARGET_MS = 50
/** As the driver has them: above every range that systemd hands out. */
const FIRST_UID = 1_900_000_000

type Host = Awaited<ReturnType<typeof openHost>>

/** What list-program.ts says of itself, in ms. */
export interface FreshList {
  open: number
  first: number
  second: number
}

export async function measureList({ quick, signal }: { quick: boolean; signal: AbortSignal }): Promise<Report> {
  await using scratch = await temporaryFolder()
  await using standIn = await standInVmm()
  const storage = path.join(scratch.folder, 'storage')
  const { shimPath } = readConfig()
  const host = await openHost({
    storage,
    shimPath,
    ...standIn.config,
    warn: (text) => console.error(text),
  })
  try {
    for (let index = 0; index < RECORDS; index++) {
      signal.throwIfAborted()
      if (index % (RECORDS / RUNNING) === 0) await addRunning(host, index)
      else await addResting(host, index)
    }
    const warm = await listOften(storage, signal)
    const fresh: FreshList[] = []
    for (let run = 0; run < (quick ? QUICK_PROCESSES : PROCESSES); run++) fresh.push(await listInFreshProcess(storage))
    return reportOn(warm, fresh)
  } finally {
    for (const record of await host.store.list()) if (record.cid !== null) await endMachine(host, record)
    host.store.close()
  }
}

/** With a real shim, a stand-in for QEMU and, where this host has no vsock of the kernel's, a real vsock daemon. */
async function addRunning(host: Host, index: number): Promise<void> {
  const { claim, id } = await add(host, index)
  const { cid, port } = await host.store.takeNumbers(id)
  const { machine, facts } = await host.vmm.start({
    ...{ sandboxId: id, directory: host.store.directoryOf(id), hostname: 'bench', files: machineFiles },
    ...{ vcpu: 1, memoryMib: 256, vsock: 'auto', cid, port, uid: FIRST_UID + cid, limits: defaultLimits },
  })
  machine.close()
  await host.store.transition(id, {
    ...{ state: stateNow('running'), timings },
    machine: { ...facts, startedAt: new Date().toISOString() },
  })
  await claim.release()
}

async function addResting(host: Host, index: number): Promise<void> {
  const { claim, id } = await add(host, index)
  const since = new Date().toISOString()
  const failed = { kind: 'failed', since, reason: 'the guest panicked, or rebooted itself' } as const
  const state = index % Math.floor(RECORDS / FAILED) === 1 ? failed : stateNow('stopped')
  await host.store.transition(id, { state, timings, machine: { ...machineOfResting, startedAt: since } })
  await claim.release()
}

async function add(host: Host, index: number) {
  const id = newSandboxId()
  const claim = await host.store.insert({
    ...{
      id,
      name: `job-${index}`,
      vcpu: 1,
      memoryMib: 256,
      diskMib: 4_096,
      vsock: 'auto',
      state: stateNow('creating'),
    },
    ...{ ...unstarted, createdAt: new Date().toISOString() },
    image: { reference: 'docker.io/library/python:3-alpine', digest: `sha256:${'5'.repeat(64)}`, config: imageConfig },
    env: { PYTHONUNBUFFERED: '1', JOB: String(index) },
    limits: { cpus: null, diskBytesPerSecond: defaultLimits.diskBytesPerSecond, diskOperationsPerSecond: 5_000 },
    labels: { team: `team-${index % 7}`, purpose: 'benchmark' },
    metadata: { request: randomUUID(), attempt: index % 3, tags: ['a', 'b'] },
  })
  await host.store.makeDirectory(id)
  return { claim, id }
}

const imageConfig = {
  env: ['PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin', 'LANG=C.UTF-8', 'PYTHON_VERSION=3.13.0'],
  user: '',
  workingDir: '',
  entrypoint: [],
  cmd: ['python3'],
  stopSignal: '',
}
/** As a sandbox of docs/performance.md has them. */
const timings = {
  ...{ image: 3, files: 11, vmm: 18, hello: 2139, 'guest.agent': 1534, 'guest.modules': 1766, 'guest.disks': 1767 },
  ...{ 'guest.root': 1848, 'guest.system': 1896, 'guest.ready': 1901 },
}
const machineOfResting = {
  vmm: 'qemu',
  version: '7.2.0',
  accelerator: 'tcg',
  acceleratorReason: 'there is no /dev/kvm',
  vsock: { backend: 'daemon', socket: 'vsock.sock' },
} as const

async function listOften(storage: string, signal: AbortSignal): Promise<number[]> {
  await using bandsox = await openBandSox({ storage })
  const times: number[] = []
  for (let run = -WARM_UP; run < COUNT; run++) {
    signal.throwIfAborted()
    const began = performance.now()
    const sandboxes = await bandsox.list()
    const tookMs = performance.now() - began
    const running = sandboxes.filter(({ state, vmmPid }) => state.kind === 'running' && vmmPid !== null).length
    if (sandboxes.length !== RECORDS || running !== RUNNING)
      throw new Error(`${sandboxes.length} sandboxes, of which ${running} run, instead of ${RECORDS} and ${RUNNING}`)
    if (run >= 0) times.push(tookMs)
  }
  return times
}

async function listInFreshProcess(storage: string): Promise<FreshList> {
  const program = fileURLToPath(new URL('list-program.js', import.meta.url))
  const { stdout } = await promisify(execFile)(process.execPath, [program, storage])
  return JSON.parse(stdout) as FreshList
}

function reportOn(warm: readonly number[], fresh: readonly FreshList[]): Report {
  const lists = {
    'list, in a process that goes on listing': warm,
    'first list in a fresh process': fresh.map(({ first }) => first),
    'second list in it': fresh.map(({ second }) => second),
    'opening the storage before': fresh.map(({ open }) => open),
  }
  const target = { kind: 'at most', value: TARGET_MS } as const
  return {
    subject: 'list',
    method: `bandsox.list() of ${RECORDS} sandboxes, ${RUNNING} of them running: ${warm.length} times after ${WARM_UP}, and in ${fresh.length} processes; ms`,
    columns: ['', 'p50', 'p95', 'min'],
    rows: Object.entries(lists).map(([name, list]) => [
      name,
      ...[0.5, 0.95, 0].map((fraction) => figure(quantile(list, fraction))),
    ]),
    verdicts: [
      { figure: 'list, p50', value: quantile(warm, 0.5), unit: ' ms', target },
      {
        figure: 'first list in a fresh process, p50',
        value: quantile(lists['first list in a fresh process'], 0.5),
        unit: ' ms',
        target,
      },
    ],
    measurements: { warm, fresh },
  }
}
