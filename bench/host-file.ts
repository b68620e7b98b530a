/** A file of random bytes to transfer: QEMU leaves out zeros, so they would measure something else. */
import { randomBytes } from 'node:crypto'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'

const BLOCK_BYTES = 1_048_576

export async function temporaryFolder(): Promise<{ folder: string } & AsyncDisposable> {
  const folder = await mkdtemp(path.join(tmpdir(), 'bandsox-bench-'))
  return { folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) }
}

export async function writeRandomFile(file: string, sizeBytes: number): Promise<void> {
  const handle = await open(file, 'w')
  try {
    for (let left = sizeBytes; left > 0; left -= BLOCK_BYTES) {
      await handle.write(randomBytes(Math.min(left, BLOCK_BYTES)))
    }
  } finally {
    await handle.close()
  }
}
