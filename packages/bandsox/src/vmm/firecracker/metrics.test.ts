import assert from 'node:assert/strict'
import { appendFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { lastMetrics } from './metrics.js'

const line = (at: number, more: object = {}) => `${JSON.stringify({ utc_timestamp_ms: at, ...more })}\n`

describe("Firecracker's metrics", () => {
  it('are the last whole line that is some, however long the log is', async (t) => {
    const log = path.join(await temporaryFolder(t), 'metrics.log')
    assert.equal(await lastMetrics(log), undefined)
    await writeFile(log, '')
    assert.equal(await lastMetrics(log), undefined)
    await writeFile(log, line(1, { block: { reads: 1 } }) + line(2, { block: { reads: 2 } }))
    assert.deepEqual(await lastMetrics(log), { at: 2, metrics: { utc_timestamp_ms: 2, block: { reads: 2 } } })
    await appendFile(log, 'not JSON\n[]\n{"utc_timestamp_ms":"4"}\n{"utc_timestamp_ms":3')
    assert.equal((await lastMetrics(log))?.at, 2)
    await writeFile(log, line(5, { filler: 'x'.repeat(1024 * 1024) }) + line(6))
    assert.equal((await lastMetrics(log))?.at, 6)
    // The log is cut where it is full, which may be in a line.
    const cut = line(8, { filler: 'y'.repeat(1000) })
    await writeFile(`${log}.1`, line(7) + cut.slice(0, 500))
    await writeFile(log, cut.slice(500))
    assert.equal((await lastMetrics(log))?.at, 8)
  })
})
