/** A file that a manifest vouches for: recorded when it is made, checked quickly at each use, fully on demand. */
import { createHash } from 'node:crypto'
import { createReadStream, statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { BandSoxError } from '@bandsox/sdk'
import * as z from 'zod'
import { publishFile } from './publish.js'

export const sha256Schema = z.string().regex(/^[0-9a-f]{64}$/)

export const recordedFileSchema = z.object({
  /** Relative to the manifest's directory, and inside it. */
  file: z.string().refine((file) => file !== '' && !file.split('/').some((part) => ['', '.', '..'].includes(part))),
  sha256: sha256Schema,
  sizeBytes: z.int().nonnegative(),
})

export type RecordedFile = z.infer<typeof recordedFileSchema>

/**
 * Modification time of every recorded file: another one tells that it was written to since. The same for all, so that two
 * processes that make the same file at once agree on it.
 */
const RECORDED_TIME = new Date(0)

/** Lower-case hex SHA-256 of a file's content. */
export async function digestFile(path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(path, { highWaterMark: 1024 * 1024 }), hash)
  return hash.digest('hex')
}

/** Syncs a finished file, makes it read-only for all, and returns what a manifest says about it. */
export async function recordFile(directory: string, file: string): Promise<RecordedFile> {
  const path = join(directory, file)
  const handle = await open(path, 'r')
  try {
    await handle.utimes(RECORDED_TIME, RECORDED_TIME)
    // Readable for the unprivileged user that a VM runs as, whatever the umask; writable for nobody, since VMs share it.
    await handle.chmod(0o444)
    // A manifest must never survive a power cut that its files did not.
    await handle.sync()
    const { size } = await handle.stat()
    return { file, sha256: await digestFile(path), sizeBytes: size }
  } finally {
    await handle.close()
  }
}

/** Makes a file and records it before it appears under its name, so that nobody ever sees it unrecorded. */
export async function publishRecorded(
  directory: string,
  file: string,
  make: (path: string) => Promise<void>,
): Promise<RecordedFile> {
  return publishFile(join(directory, file), async (unfinished) => {
    await make(unfinished)
    return { ...(await recordFile(dirname(unfinished), basename(unfinished))), file }
  })
}

/**
 * Compares size and modification time: some microseconds, where the digest of a kernel would cost 150 ms per sandbox.
 *
 * @throws `artifact-damaged` naming the file.
 */
export async function checkFile(directory: string, recorded: RecordedFile): Promise<void> {
  const path = join(directory, recorded.file)
  const found = statSync(path, { throwIfNoEntry: false })
  if (found === undefined) throw new BandSoxError('artifact-damaged', `${path} is missing`)
  if (found.size !== recorded.sizeBytes) {
    throw new BandSoxError('artifact-damaged', `${path} has ${found.size} bytes instead of ${recorded.sizeBytes}`)
  }
  if (found.mtimeMs !== RECORDED_TIME.getTime()) {
    throw new BandSoxError('artifact-damaged', `${path} was changed after it was made, at ${found.mtime.toISOString()}`)
  }
}

/**
 * Compares the content with its digest.
 *
 * @throws `artifact-damaged` naming the file.
 */
export async function verifyFile(directory: string, recorded: RecordedFile): Promise<void> {
  await checkFile(directory, recorded)
  const found = await digestFile(join(directory, recorded.file))
  if (found === recorded.sha256) return
  const file = join(directory, recorded.file)
  throw new BandSoxError('artifact-damaged', `${file} has the SHA-256 ${found} instead of ${recorded.sha256}`)
}
