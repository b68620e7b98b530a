/** `bandsox import`, run as a user runs it, and its report. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { chmod, readdir } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import type { ImportReport } from '../sandbox/import/import-storage.js'
import {
  DEAD_ID,
  earlierRecord,
  earlierStorage,
  OTHER_ID,
  RUNNING_ID,
  runningFirecracker,
  treeDigest,
} from '../testing/earlier-storage.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { importText } from './import-text.js'

const MAIN = fileURLToPath(new URL('./main.js', import.meta.url))

interface Outcome {
  status: number
  stdout: string
  stderr: string
}

function bandsox(storage: string, args: string[], options: { uid?: number } = {}): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const timed = { ...options, timeout: 30_000 }
    execFile(process.execPath, [MAIN, '--storage', storage, ...args], timed, (error, stdout, stderr) => {
      if (error === null) resolve({ status: 0, stdout, stderr })
      else if (typeof error.code === 'number') resolve({ status: error.code, stdout, stderr })
      else reject(error)
    })
  })
}

describe('bandsox import', { concurrency: 2 }, () => {
  it('imports, says what became of each, and knows them again', async (t) => {
    const storage = path.join(await temporaryFolder(t), 'new')
    const folder = await earlierStorage(t, {
      records: [earlierRecord(DEAD_ID, { name: 'my vm' }), earlierRecord(OTHER_ID)],
      ...{ cids: { next_cid: 6, free_cids: [] }, ports: { next_port: 9002, used_ports: [] } },
    })
    const before = await treeDigest(folder)
    const dry = await bandsox(storage, ['import', '--dry-run', folder])
    assert.equal(dry.status, 0, dry.stderr)
    assert.match(dry.stdout, /a dry run: nothing was imported; .* MiB are needed/)
    const first = await bandsox(storage, ['import', folder])
    assert.equal(first.status, 0, first.stderr)
    assert.match(
      first.stdout,
      new RegExp(`^imported +${DEAD_ID} \\(my-vm\\): as sbx_\\w+: bandsox vm start ${DEAD_ID}$`, 'm'),
    )
    assert.match(first.stdout, /^ +note: its name "my vm" became my-vm$/m)
    assert.match(first.stdout, /^CID 4: dead records e3039fdb\S+, f368bbe3\S+ had it, and none holds it$/m)
    assert.match(first.stdout, /^next CID: 6; next port: 9002\nTotal: 2 VMs: 2 imported$/m)
    const again = await bandsox(storage, ['import', folder, '--json'])
    assert.equal(again.status, 0)
    const report = JSON.parse(again.stdout) as ImportReport
    assert.deepEqual(
      report.vms.map(({ outcome }) => outcome),
      ['present', 'present'],
    )
    const list = JSON.parse((await bandsox(storage, ['vsock', 'list', '--json'])).stdout) as Record<string, unknown>
    assert.deepEqual(list, {
      cid_allocator: { free_cids: [], next_cid: 6 },
      port_allocator: { next_port: 9002, used_ports: [] },
      owners: [],
    })
    const shown = JSON.parse((await bandsox(storage, ['vm', 'show', DEAD_ID, '--json'])).stdout) as Record<
      string,
      unknown
    >
    assert.deepEqual([shown['importedFrom'], shown['image']], [DEAD_ID, 'alpine:latest'])
    assert.equal(await treeDigest(folder), before)
  })

  it('exits with 65 when some are not fit, with 75 when some run there still', async (t) => {
    const storage = path.join(await temporaryFolder(t), 'new')
    const folder = await earlierStorage(t, { records: [earlierRecord(RUNNING_ID)] })
    const { pid } = await runningFirecracker(t, { args: ['--api-sock', `${RUNNING_ID}.sock`] })
    const running = await bandsox(storage, ['import', folder])
    assert.equal(running.status, 75)
    assert.match(
      running.stdout,
      new RegExp(`^running .*it runs, as process ${pid}: stop it there, and import again$`, 'm'),
    )
    const damaged = await earlierStorage(t, { files: { 'x.json': '{' } })
    const refused = await bandsox(storage, ['import', damaged])
    assert.equal(refused.status, 65)
    assert.match(refused.stdout, /^refused +metadata\/x.json: it is no JSON$/m)
  })

  it('refuses other folders before it makes a storage', async (t) => {
    const folder = await earlierStorage(t)
    const inside = path.join(folder, 'new')
    const nested = await bandsox(inside, ['import', folder])
    assert.equal(nested.status, 64)
    assert.ok(!(await readdir(folder)).includes('new'))
    const missing = await bandsox(path.join(await temporaryFolder(t), 'new'), ['import', '/nonexistent'])
    assert.equal(missing.status, 66)
  })

  it('says who may read what it may not', async (t) => {
    if (process.getuid?.() !== 0) return t.skip('only root can be another user')
    const storage = path.join(await temporaryFolder(t), 'new')
    const folder = await earlierStorage(t, { records: [earlierRecord(DEAD_ID)] })
    await chmod(path.dirname(storage), 0o777)
    await chmod(path.dirname(folder), 0o755)
    await chmod(path.join(folder, 'metadata'), 0o700)
    const refused = await bandsox(storage, ['import', folder], { uid: 65_534 })
    assert.equal(refused.status, 77, refused.stderr)
    assert.match(
      refused.stderr,
      /cannot read .*\/metadata: EACCES.*\nhint: run it as the user whom it belongs to, or as root/,
    )
  })
})

describe('the report', () => {
  const report: ImportReport = {
    ...{ folder: '/old', dryRun: false, vms: [], problems: [], neededBytes: 0, freeBytes: 1 },
    conflicts: [
      { number: 'CID', value: 4, heldBy: [RUNNING_ID], dead: [DEAD_ID] },
      { number: 'port', value: 9001, heldBy: [RUNNING_ID], dead: [DEAD_ID, OTHER_ID] },
      { number: 'CID', value: 7, heldBy: [RUNNING_ID, OTHER_ID], dead: [] },
    ],
    numbers: { cids: { free_cids: [], next_cid: 6 }, ports: { next_port: 9003, used_ports: [] } },
  }

  it('says of each number that was claimed twice who has it', () => {
    assert.deepEqual(importText(report).split('\n').slice(0, 3), [
      `CID 4: held by ${RUNNING_ID}, which runs; dead record ${DEAD_ID} had it too, and gets none`,
      `port 9001: held by ${RUNNING_ID}, which runs; dead records ${DEAD_ID}, ${OTHER_ID} had it too, and get none`,
      `CID 7: held by ${RUNNING_ID}, ${OTHER_ID}, which run`,
    ])
  })

  it('lets no text of the earlier storage steer a terminal', () => {
    const vms: ImportReport['vms'] = [
      { file: 'a\u001b[2J\n.json', outcome: 'refused', reason: 'x\u009b1m', notes: ['\u202e'] },
    ]
    assert.match(
      importText({ ...report, vms }),
      /^refused {4}metadata\/a\ufffd\[2J\ufffd\.json: x\ufffd1m\n {11}note: \ufffd\n/,
    )
  })
})
