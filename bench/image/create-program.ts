/** A program as a user would write one: creates a sandbox and removes it, again and again, and says what was written for it. */
import { readFile } from 'node:fs/promises'
import { openBandSox } from 'bandsox'

const [image = '', runs = '1'] = process.argv.slice(2)

await using bandsox = await openBandSox()
const written: number[] = []
// Once more than is told of: the first may have to format the empty disk of this size.
for (let run = 0; run <= Number(runs); run++) {
  const before = await writtenBytes()
  {
    await using sandbox = await bandsox.create(image, { pull: 'missing' })
    await sandbox.exec(['true']).wait()
  }
  if (run > 0) written.push((await writtenBytes()) - before)
}
process.send?.(written)
process.disconnect?.()

/**
 * What this process and all its children that have ended gave file systems to write, counted when a page becomes dirty: an
 * upper bound of what reaches the disk, since a file that is removed at once never does. See proc(5), /proc/PID/io.
 */
async function writtenBytes(): Promise<number> {
  const [, bytes] = /^write_bytes: (\d+)$/m.exec(await readFile('/proc/self/io', 'utf8')) ?? []
  return Number(bytes)
}
