/** The sandboxes of one storage folder: a directory each, whose record is replaced atomically. */
import { randomBytes } from 'node:crypto'
import { mkdir, readdir, rename, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { identify, isAlive } from '../process/identity.js'
import { readJsonFile, writeJsonFile } from '../process/json-file.js'
import { Leases } from './lease.js'
import { isLockStale, lockOperation, unlockOperation } from './operation-lock.js'
import { recordSchema, type SandboxRecord } from './record.js'

const RECORD_FILE = 'sandbox.json'
/** Tried again for some seconds: a shim whose starter was just killed may still be ending its VM, and write there meanwhile. */
const REMOVAL = { recursive: true, force: true, maxRetries: 12, retryDelay: 50 } as const
const DAMAGED_HINT = 'when no process of the VM runs any more, remove its folder'
const REMOVED_PREFIX = '.removed-'
const UNFINISHED_PREFIX = '.creating-'
/** `.creating-<pid>-<start time>-<id>`. */
const UNFINISHED = /^\.creating-(\d+)-(\d+)-/
const ALPHABET = 'abcdefghijklmnopqrstuvwxyz234567'
const ID_LENGTH = 10

/** `sbx_` and 50 random bits in RFC 4648 base32, lower case. */
export function newSandboxId(): string {
  const letters = Array.from(randomBytes(ID_LENGTH), (byte) => ALPHABET[byte % ALPHABET.length])
  return `sbx_${letters.join('')}`
}

export class SandboxStore {
  readonly root: string
  readonly leases: Leases
  /** What was read last, as every operation asks for it and hardly any finds it changed. */
  readonly #known = new Map<string, { version: string; record: SandboxRecord }>()

  constructor(root: string) {
    this.root = root
    this.leases = new Leases(path.join(root, 'leases'))
  }

  /** Makes the folders. Only their owner may look inside: consoles and disks are in there. */
  async open(): Promise<void> {
    await mkdir(this.root, { recursive: true, mode: 0o700 })
    await mkdir(this.#vms, { recursive: true, mode: 0o700 })
  }

  directoryOf(id: string): string {
    return path.join(this.#vms, id)
  }

  /**
   * Makes a sandbox's directory, locked: another process would take an unlocked one for a dead one's. It gets its name last, so
   * that whatever a process leaves that is killed in between tells whose it was. Nobody takes it for a sandbox before its record
   * is there.
   *
   * Mode 0711: the VM's own user reaches its disk by name, and sees nothing else.
   *
   * @returns The release of the lock.
   */
  async makeDirectory(id: string): Promise<() => Promise<void>> {
    const self = await identify(process.pid)
    const unfinished = path.join(this.#vms, `${UNFINISHED_PREFIX}${process.pid}-${self?.startTime}-${id}`)
    await mkdir(unfinished, { mode: 0o711 })
    try {
      await lockOperation(unfinished, 'create')
      await rename(unfinished, this.directoryOf(id))
    } catch (error) {
      await rm(unfinished, REMOVAL)
      throw error
    }
    return () => unlockOperation(this.directoryOf(id))
  }

  async write(record: SandboxRecord): Promise<void> {
    await writeJsonFile(path.join(this.directoryOf(record.id), RECORD_FILE), record)
  }

  /** @returns undefined when there is no such sandbox. @throws `artifact-damaged`. */
  async read(id: string): Promise<SandboxRecord | undefined> {
    const file = path.join(this.directoryOf(id), RECORD_FILE)
    const version = await fileVersion(file)
    const known = this.#known.get(id)
    if (known !== undefined && known.version === version) return known.record
    this.#known.delete(id)
    const record = await readJsonFile(file, recordSchema, DAMAGED_HINT)
    // Of the time before the reading: what was replaced in between is read again, rather than never.
    if (version !== undefined && record !== undefined) this.#known.set(id, { version, record })
    return record
  }

  async ids(): Promise<string[]> {
    return (await this.#names()).filter((name) => name.startsWith('sbx_')).sort()
  }

  /** All records; a damaged one must not keep anybody from the others. */
  async records(): Promise<{ readable: SandboxRecord[]; damaged: { id: string; error: BandSoxError }[] }> {
    const readable: SandboxRecord[] = []
    const damaged: { id: string; error: BandSoxError }[] = []
    for (const id of await this.ids()) {
      try {
        const record = await this.read(id)
        if (record !== undefined) readable.push(record)
      } catch (error) {
        if (!(error instanceof BandSoxError && error.code === 'artifact-damaged')) throw error
        damaged.push({ id, error })
      }
    }
    return { readable, damaged }
  }

  /** Removes a sandbox's directory; from the first moment it is not found under its id any more. */
  async remove(id: string): Promise<void> {
    const removed = path.join(this.#vms, `${REMOVED_PREFIX}${id}`)
    try {
      await rename(this.directoryOf(id), removed)
    } catch (error) {
      if (!isSystemError(error, 'ENOENT')) throw error
    }
    await rm(removed, REMOVAL)
  }

  /** Finishes removals that a killed process began, and removes what one left that died before it wrote its record. */
  async finishRemovals(): Promise<void> {
    for (const name of await this.#names()) {
      const isLeft = name.startsWith(REMOVED_PREFIX) || (await isOfDeadProcess(name))
      if (isLeft) await rm(path.join(this.#vms, name), REMOVAL)
    }
    const { readable, damaged } = await this.records()
    const recorded = new Set([...readable.map(({ id }) => id), ...damaged.map(({ id }) => id)])
    for (const id of await this.ids()) {
      if (!recorded.has(id) && (await isLockStale(this.directoryOf(id)))) await this.remove(id)
    }
  }

  /** By id, unique id prefix (with or without `sbx_`), or name. @throws `not-found`, `ambiguous-name`. */
  async find(idOrName: string): Promise<SandboxRecord> {
    const { readable, damaged } = await this.records()
    const exact = readable.find(({ id }) => id === idOrName)
    if (exact !== undefined) return exact
    const unreadable = damaged.find(({ id }) => id === idOrName)
    if (unreadable !== undefined) throw unreadable.error
    const named = readable.filter(({ name }) => name === idOrName)
    const prefix = idOrName.replace(/^sbx_/, '')
    const byPrefix = prefix === '' ? [] : readable.filter(({ id }) => id.startsWith(`sbx_${prefix}`))
    const matches = named.length > 0 ? named : byPrefix
    const [match] = matches
    if (match === undefined) throw new BandSoxError('not-found', `there is no sandbox ${JSON.stringify(idOrName)}`)
    if (matches.length > 1) {
      const ids = matches.map(({ id }) => id).join(', ')
      throw new BandSoxError('ambiguous-name', `${JSON.stringify(idOrName)} means ${matches.length} sandboxes: ${ids}`)
    }
    return match
  }

  get #vms(): string {
    return path.join(this.root, 'vms')
  }

  async #names(): Promise<string[]> {
    try {
      return await readdir(this.#vms)
    } catch (error) {
      if (isSystemError(error, 'ENOENT')) return []
      throw error
    }
  }
}

async function isOfDeadProcess(name: string): Promise<boolean> {
  const [, pid, startTime] = UNFINISHED.exec(name) ?? []
  return pid !== undefined && !(await isAlive({ pid: Number(pid), startTime: Number(startTime) }))
}

/** Within this time a file may be replaced again without showing it: file systems keep times by the timer's ticks. */
const UNSETTLED_NS = 100_000_000n

/** @returns What tells one content of a file from another; undefined when there is no file, or it has only just changed. */
async function fileVersion(file: string): Promise<string | undefined> {
  try {
    const { ino, size, mtimeNs, ctimeNs } = await stat(file, { bigint: true })
    if (BigInt(Date.now()) * 1_000_000n - ctimeNs < UNSETTLED_NS) return undefined
    return [ino, size, mtimeNs, ctimeNs].join()
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}
