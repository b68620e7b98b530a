/** Imports the earlier project's storage: each VM that does not run becomes a stopped sandbox, with a copy of its disk. */
import { chmod, open, realpath, statfs } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { copyEmptyDisk, copySparse, emptyDisk } from '../../image/disk.js'
import type { AllocatorState } from '../../store/numbers.js'
import { type SandboxRecord, unstarted } from '../../store/record.js'
import { newSandboxId } from '../../store/sandbox-store.js'
import { type Host, IMPORTED_ROOT, machineFiles } from '../host.js'
import { storageFolders } from '../prepare.js'
import { Releases } from '../releases.js'
import { destroy, stateNow } from '../settle.js'
import { type EarlierDisk, type EarlierStorage, openEarlierStorage } from './earlier-storage.js'
import { firecrackerProcesses, runsIn } from './firecracker-processes.js'
import { type Decision, type NumberConflict, type Plan, planImport } from './plan.js'

/** For the writable layer of each, and the database. */
const BYTES_PER_SANDBOX = 16 * 1024 * 1024
/** Left free: a full disk takes everything else on the host down. */
const RESERVE_BYTES = 64 * 1024 * 1024

export interface ImportOptions {
  /** Only tells what would be done. */
  dryRun?: boolean
  /** Told before each disk is copied. */
  onCopy?: (vm: { earlierId: string; diskBytes: number; index: number; count: number }) => void
  signal?: AbortSignal
}

/** What became of one VM. */
export interface ImportedVm {
  /** Undefined of a record that does not tell it. */
  earlierId?: string
  /** In the folder `metadata`. */
  file: string
  name?: string
  /**
   * `importable`: it would be imported, were it no dry run. `present`: it was imported before. `running`: left alone until it is
   * stopped. `refused`: its record or its disk is not fit. `failed`: the attempt was undone.
   */
  outcome: 'imported' | 'importable' | 'present' | 'running' | 'refused' | 'failed'
  /** Of ours, where it is one. */
  sandbox?: string
  /** The process that it runs in. */
  pid?: number
  /** Why not. */
  reason?: string
  /** What was mended. */
  notes: string[]
}

export interface ImportReport {
  folder: string
  dryRun: boolean
  vms: ImportedVm[]
  conflicts: NumberConflict[]
  /** Of the folder as a whole. */
  problems: string[]
  /** What the disks to be copied take, and what is free for them. */
  neededBytes: number
  freeBytes: number
  /** As they are afterwards. */
  numbers: AllocatorState
}

/**
 * One VM that cannot be imported does not keep the others out; it is in the report.
 *
 * @throws What {@link openEarlierStorage} throws; `bad-request` when one folder lies in the other; `no-space` before anything was
 *   copied; `options.signal`'s reason.
 */
export async function importStorage(host: Host, given: string, options: ImportOptions = {}): Promise<ImportReport> {
  const { dryRun = false, signal } = options
  await requireSeparate(given, host.store.root)
  await using source = await openEarlierStorage(given)
  const plan = await makePlan(host, source)
  const wanted = plan.decisions.filter((decision) => decision.kind === 'import')
  const neededBytes = wanted.reduce((sum, { disk }) => sum + disk.allocatedBytes + BYTES_PER_SANDBOX, 0)
  const { bavail, bsize } = await statfs(host.store.root)
  const freeBytes = Math.max(0, bavail * bsize - RESERVE_BYTES)
  const vms: ImportedVm[] = source.damaged.map(({ file, reason }) => ({ file, outcome: 'refused', reason, notes: [] }))
  if (!dryRun) {
    if (neededBytes > freeBytes)
      throw new BandSoxError(
        'no-space',
        `cannot import ${source.folder}: its disks take ${neededBytes} bytes, ${freeBytes} are free for them in ${host.store.root}`,
        { hint: 'free some: bandsox system df, bandsox system prune; or use another storage: --storage FOLDER' },
      )
    // First: what is imported may be started at once.
    await host.store.beginNumbersAfter(plan.numbersFrom)
  }
  let index = 0
  for (const decision of plan.decisions) {
    signal?.throwIfAborted()
    if (decision.kind !== 'import' || dryRun) {
      vms.push(told(decision))
      continue
    }
    const { record, disk } = decision
    options.onCopy?.({ earlierId: record.id, diskBytes: disk.allocatedBytes, index: ++index, count: wanted.length })
    vms.push(await importVm(host, source, decision, signal))
  }
  const { folder, problems } = source
  const numbers = await host.store.numbers()
  return { folder, dryRun, vms, conflicts: plan.conflicts, problems: [...problems], neededBytes, freeBytes, numbers }
}

/** Nothing is written to the source: so our storage must not lie in it. @throws `bad-request`. */
export async function requireSeparate(given: string, storage: string): Promise<void> {
  const [source, ours] = await Promise.all([realOrSelf(given), realOrSelf(storage)])
  const isInside = (inner: string, outer: string) => inner === outer || inner.startsWith(`${outer}/`)
  if (!isInside(ours, source) && !isInside(source, ours)) return
  throw new BandSoxError('bad-request', `cannot import ${given} into ${storage}: one lies in the other`, {
    hint: 'nothing is changed in the old storage: use another folder for the new one: --storage FOLDER',
  })
}

/** Of what does not exist yet, that of the folder above it. */
async function realOrSelf(file: string): Promise<string> {
  const absolute = path.resolve(file)
  if (absolute === '/') return absolute
  try {
    return await realpath(absolute)
  } catch {
    return path.join(await realOrSelf(path.dirname(absolute)), path.basename(absolute))
  }
}

async function makePlan(host: Host, source: EarlierStorage): Promise<Plan> {
  const processes = await firecrackerProcesses()
  const running = new Map<string, number>()
  for (const { record, disk } of source.vms) {
    const pid = runsIn(processes, { id: record.id, pid: record.pid, disk })
    if (pid !== undefined) running.set(record.id, pid)
  }
  const { defaultLimits } = host
  return planImport({ ...source, running, present: await importedBefore(host), defaultLimits, now: new Date() })
}

async function importedBefore(host: Host): Promise<Map<string, string>> {
  const records = await host.store.list()
  return new Map(records.flatMap(({ id, importedFrom }) => (importedFrom === undefined ? [] : [[importedFrom, id]])))
}

function told(decision: Decision): ImportedVm {
  const { kind, record, notes } = decision
  const name = kind === 'import' ? decision.mended.shape.name : (record.name ?? undefined)
  const vm = { earlierId: record.id, file: `${record.id}.json`, ...(name !== undefined && { name }), notes }
  switch (kind) {
    case 'import':
      return { ...vm, outcome: 'importable' }
    case 'present':
      return { ...vm, outcome: 'present', sandbox: decision.sandbox }
    case 'running':
      return { ...vm, outcome: 'running', pid: decision.pid }
    case 'refused':
      return { ...vm, outcome: 'refused', reason: decision.reason }
  }
}

type Importable = Extract<Decision, { kind: 'import' }>

/** @throws Only `signal`'s reason. */
async function importVm(
  host: Host,
  source: EarlierStorage,
  decision: Importable,
  signal: AbortSignal | undefined,
): Promise<ImportedVm> {
  const vm = told(decision)
  const earlierId = decision.record.id
  try {
    const id = await makeSandbox(host, source, decision, signal)
    host.info(`imported ${id} of ${earlierId}`)
    return { ...vm, outcome: 'imported', sandbox: id }
  } catch (error) {
    signal?.throwIfAborted()
    // Another process may have imported it at the same time: only one can enter it.
    const sandbox = (await importedBefore(host)).get(earlierId)
    if (sandbox !== undefined) return { ...vm, outcome: 'present', sandbox, notes: [] }
    return { ...vm, outcome: 'failed', reason: messageOf(error) }
  }
}

/** All or nothing: what a killed process leaves is removed by the next one, since it is still `creating`. */
async function makeSandbox(
  host: Host,
  source: EarlierStorage,
  { mended, record: earlier, disk }: Importable,
  signal: AbortSignal | undefined,
): Promise<string> {
  const releases = new Releases()
  try {
    const claim = await host.store.insert(newRecord(earlier.id, mended), { operation: 'import' })
    const { record } = claim
    releases.add('the sandbox', () => destroy(host, record))
    await host.store.makeDirectory(record.id)
    await copyDisk(source, disk, path.join(host.store.directoryOf(record.id), IMPORTED_ROOT), signal)
    await layOutOverlay(host, record, signal)
    await host.store.transition(record.id, { state: stateNow('stopped') })
    await claim.release()
    releases.forget()
    return record.id
  } catch (error) {
    for (const failure of await releases.run()) host.warn(`after a failed import: ${failure}`)
    throw error
  }
}

/** Docker's, which the earlier project's images were made by: it did not keep an image's own. */
const DEFAULT_PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

function newRecord(
  earlierId: string,
  { shape, image, createdAt }: Importable['mended'],
): Omit<SandboxRecord, 'operation'> {
  const { bootTimeoutMs: _, unique: __, ...kept } = shape
  return {
    id: newSandboxId(),
    ...kept,
    image: {
      reference: image,
      // No image of ours has this one, which is not by SHA-256: none is kept for the sandbox's sake, and none is taken for its own.
      digest: `imported:${earlierId}`,
      config: { env: [DEFAULT_PATH], user: '', workingDir: '', entrypoint: [], cmd: [], stopSignal: '' },
    },
    ...unstarted,
    importedFrom: earlierId,
    hasOwnRoot: true,
    state: stateNow('creating'),
    createdAt,
  }
}

/** The whole disk, as the guest left it: only a guest's kernel ever looks inside. */
async function copyDisk(
  source: EarlierStorage,
  disk: EarlierDisk,
  target: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const handle = await source.openDisk(disk)
  try {
    const before = await handle.stat({ bigint: true })
    // By our descriptor: cp gets the file that we have looked at, whatever stands under its name now.
    await copySparse(`/proc/${process.pid}/fd/${handle.fd}`, target, signal)
    const after = await handle.stat({ bigint: true })
    if (`${before.dev}:${before.ino}` !== disk.file || before.mtimeNs !== after.mtimeNs || before.size !== after.size)
      throw new BandSoxError(
        'busy',
        `its disk images/${disk.name} was changed while it was copied: something runs on it`,
      )
  } finally {
    await handle.close()
  }
  await chmod(target, 0o600)
  await sync(target)
}

/** Whoever was told that it is imported may remove the source. */
async function sync(file: string): Promise<void> {
  const handle = await open(file, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function layOutOverlay(host: Host, record: SandboxRecord, signal: AbortSignal | undefined): Promise<void> {
  const { root } = host.store
  const overlay = path.join(host.store.directoryOf(record.id), machineFiles.overlay)
  const disk = await emptyDisk({ cacheDirectory: storageFolders(root).disks, sizeMib: record.diskMib, signal })
  await copyEmptyDisk(disk.path, overlay, signal)
  await chmod(overlay, 0o600)
}
