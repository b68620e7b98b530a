/**
 * Takes the named programs out of a release archive, a gzipped tar, as its bytes come: nothing else of it is ever written, whatever it
 * holds and whatever that is called.
 */
import { createHash, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { createGunzip } from 'node:zlib'
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { readable, type TarEntry } from '../../tar/tar-entry.js'
import { TarReader } from '../../tar/tar-reader.js'
import type { RecordedProgram } from '../../vmm/firecracker/installed.js'

/** Release 1.16.1 has 20 entries, unpacked some 100 MiB, most of it debug information. */
export const ARCHIVE_LIMITS: ArchiveLimits = {
  maxEntries: 10_000,
  maxUnpackedBytes: 2 * 1024 ** 3,
  maxProgramBytes: 128 * 1024 ** 2,
}

export interface ArchiveLimits {
  maxEntries: number
  maxUnpackedBytes: number
  maxProgramBytes: number
}

export interface ExtractOptions<N extends string> {
  archive: string
  /** Path in the archive, by the name that its file gets. */
  wanted: Record<N, string>
  directory: string
  limits?: ArchiveLimits
  signal?: AbortSignal | undefined
}

interface Taking<N> {
  name: N
  from: number
  to: number
  file: FileHandle
  hash: Hash
}

/**
 * Writes each wanted program that is there as an executable file, synced.
 *
 * @returns What was written, and the paths of other Firecrackers: to say what an archive has instead.
 * @throws `artifact-damaged` for an archive that is none, is cut short, or holds a wanted program twice, too large or as what is no
 *   file; `signal.reason`.
 */
export async function extractPrograms<N extends string>({
  archive,
  wanted,
  directory,
  limits = ARCHIVE_LIMITS,
  signal,
}: ExtractOptions<N>): Promise<{ programs: Partial<Record<N, RecordedProgram>>; others: string[] }> {
  const names = Object.keys(wanted) as N[]
  const programs: Partial<Record<N, RecordedProgram>> = {}
  const others: string[] = []
  const found: { name: N; entry: TarEntry }[] = []
  let entries = 0
  const reader = new TarReader((entry) => {
    if (++entries > limits.maxEntries) throw damaged(`it has more than ${limits.maxEntries} entries`)
    const path = entry.path.replace(/^(?:\.\/)+/, '')
    const name = names.find((each) => wanted[each] === path)
    if (name === undefined) {
      if (/(?:^|\/)firecracker-v(?![^/]*\.debug$)[^/]{1,64}$/.test(path) && others.length < 8)
        others.push(readable(path))
      return
    }
    checkProgram(entry, limits)
    if (found.some((each) => each.name === name)) throw damaged(`${readable(path)} is in it twice`)
    found.push({ name, entry })
  })

  let position = 0
  let taking: Taking<N> | undefined
  const input = createReadStream(archive)
  const unpacked = createGunzip()
  input.on('error', (error) => unpacked.destroy(error))
  try {
    for await (const chunk of input.pipe(unpacked)) {
      signal?.throwIfAborted()
      const piece = chunk as Buffer
      const begin = position
      position += piece.length
      if (position > limits.maxUnpackedBytes)
        throw damaged(`unpacked it has more than ${limits.maxUnpackedBytes} bytes`)
      reader.write(piece)
      // An entry is told when its header has come, so its content begins in this piece, or behind it.
      for (;;) {
        if (taking === undefined) {
          const next = found.find(({ name }) => programs[name] === undefined)
          if (next === undefined || next.entry.content.position >= position) break
          taking = await startTaking(next.name, next.entry, directory)
        }
        const isDone = await take(taking, piece, begin)
        if (!isDone) break
        programs[taking.name] = await finish(taking)
        taking = undefined
      }
    }
    reader.end()
    return { programs, others }
  } catch (error) {
    signal?.throwIfAborted()
    if (error instanceof BandSoxError && error.code !== 'layer-invalid') throw error
    if (error instanceof Error && 'syscall' in error) throw error // of this host's files
    throw damaged(messageOf(error), error)
  } finally {
    await taking?.file.close()
    input.destroy()
    unpacked.destroy()
  }
}

function checkProgram({ kind, path, content }: TarEntry, { maxProgramBytes }: ArchiveLimits): void {
  if (kind !== 'file' || content.extents !== undefined) throw damaged(`${readable(path)} in it is no plain file`)
  if (content.sizeBytes === 0) throw damaged(`${readable(path)} in it is empty`)
  if (content.sizeBytes > maxProgramBytes)
    throw damaged(`${readable(path)} in it has ${content.sizeBytes} bytes, over ${maxProgramBytes}`)
}

async function startTaking<N extends string>(name: N, { content }: TarEntry, directory: string): Promise<Taking<N>> {
  const file = await open(join(directory, name), 'wx', 0o755)
  return { name, from: content.position, to: content.position + content.sizeBytes, file, hash: createHash('sha256') }
}

/** Writes what of the program is in the piece that begins at `begin`. @returns Whether that was the last of it. */
async function take({ from, to, file, hash }: Taking<string>, piece: Buffer, begin: number): Promise<boolean> {
  const bytes = piece.subarray(Math.max(0, from - begin), Math.max(0, to - begin))
  hash.update(bytes)
  await file.appendFile(bytes)
  return to <= begin + piece.length
}

async function finish({ from, to, file, hash }: Taking<string>): Promise<RecordedProgram> {
  await file.chmod(0o755) // whatever the umask
  await file.sync()
  await file.close()
  return { sha256: hash.digest('hex'), sizeBytes: to - from }
}

const damaged = (why: string, cause?: unknown): BandSoxError =>
  new BandSoxError('artifact-damaged', `the release archive is not usable: ${why}`, {
    cause,
    hint: 'get it from https://github.com/firecracker-microvm/firecracker/releases, or name another: --firecracker-url',
  })
