/** Files over a serial line that damages, drops and repeats what it carries. */
import assert from 'node:assert/strict'
import { rename } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { openBandSox } from 'bandsox'
import { linkStatistics, readRun } from 'bandsox/internal/process/shim.js'
import { noisyLine } from './support/noisy-line.js'
import { randomBytes } from './support/random.js'
import { onlyOnQemu, temporaryStorage, until } from './support/storage.js'

const SIZE_BYTES = 16 * 1024 * 1024
const noise = { damagedByteIn: 2_000, droppedPercent: 3, repeatedPercent: 1 }
const seed = Number(process.env['BANDSOX_CHAOS_SEED'] ?? 5)

test('16 MiB each way survive a line that damages one byte in 2,000, drops 3 % of the frames and repeats 1 %', {
  skip: onlyOnQemu('its serial line has no socket to be noisy at'),
}, async (t) => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  const sandbox = await bandsox.create('bandsox/base', { vsock: 'off' })
  const { directory } = await sandbox.info()
  const line = path.join(directory, 'agent.sock')
  await rename(line, `${line}.quiet`)
  const counts = await noisyLine(t, { at: line, target: `${line}.quiet`, noise, seed })
  // The shim has the quiet line open; the one that takes its place finds the noisy one.
  const { run } = await readRun(directory)
  assert.ok(run)
  process.kill(run.shim.pid, 'SIGKILL')
  await until(async () => !(await readRun(directory)).shimAlive, 'the shim to end')

  const content = randomBytes(SIZE_BYTES, 8)
  const up = await sandbox.files.write('/data/file', content)
  const back = await sandbox.files.read('/data/file')
  assert.ok(back.equals(content))
  assert.equal(up.link, 'serial')

  const { serial } = await linkStatistics(directory)
  t.diagnostic(JSON.stringify({ ...counts, ...serial }))
  assert.ok(counts.damagedBytes > SIZE_BYTES / 2_000, `${counts.damagedBytes} bytes were damaged`)
  assert.ok(counts.dropped > 100 && counts.repeated > 30)
  assert.ok((serial?.framesResent ?? 0) > 100)
  await sandbox.delete({ force: true })
  await storage.assertNothingLeft()
})
