import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { DEAD_ID, earlierRecord, OTHER_ID, RUNNING_ID } from '../../testing/earlier-storage.js'
import { usualLimits } from '../limits.js'
import { parseRecord } from './earlier-record.js'
import type { EarlierVm } from './earlier-storage.js'
import { mendRecord } from './mend.js'
import { type PlanInput, planImport } from './plan.js'

const now = new Date('2026-02-01T00:00:00.000Z')
const record = (id: string, over: object = {}) => parseRecord(`${id}.json`, JSON.stringify(earlierRecord(id, over)))
const disk = { name: 'a.ext4', sizeBytes: 1, allocatedBytes: 1, file: '1:1' }
const vm = (id: string, over: object = {}): EarlierVm => ({ record: record(id, over), disk, notes: [] })

const plan = (vms: EarlierVm[], over: Partial<PlanInput> = {}) =>
  planImport({
    ...{ vms, nextCid: undefined, nextPort: undefined, running: new Map(), present: new Map() },
    ...{ defaultLimits: usualLimits, now },
    ...over,
  })

const vsock = (cid: unknown, port: unknown) => ({ vsock_config: { enabled: true, cid, port } })

describe('numbers that two records claim', () => {
  it('are of the one that really runs: the case of the vsock report, with a true conflict', () => {
    // The report's dead one had CID 4 and port 9001 when the running one had 5 and 9002; here a second dead one has those, too.
    const vms = [vm(DEAD_ID, vsock(4, 9001)), vm(RUNNING_ID, vsock(5, 9002)), vm(OTHER_ID, vsock(5, 9002))]
    const { decisions, conflicts, numbersFrom } = plan(vms, {
      ...{ nextCid: 4, nextPort: 9002, running: new Map([[RUNNING_ID, 77]]) },
    })
    assert.deepEqual(
      decisions.map(({ kind }) => kind),
      ['import', 'running', 'import'],
    )
    assert.deepEqual(conflicts, [
      { number: 'CID', value: 5, heldBy: [RUNNING_ID], dead: [OTHER_ID] },
      { number: 'port', value: 9002, heldBy: [RUNNING_ID], dead: [OTHER_ID] },
    ])
    // The allocator said 4 and 9002, which run.
    assert.deepEqual(numbersFrom, { cid: 6, port: 9003 })
    assert.match(decisions[0]?.notes[0] ?? '', /recorded as running, and nothing of it runs/)
  })

  it('are nobody’s when none of them runs', () => {
    const { conflicts, numbersFrom } = plan([vm(DEAD_ID, vsock(40, 9999)), vm(OTHER_ID, vsock(40, null))])
    assert.deepEqual(conflicts, [{ number: 'CID', value: 40, heldBy: [], dead: [DEAD_ID, OTHER_ID] }])
    assert.deepEqual(numbersFrom, { cid: 3, port: 9000 })
  })

  it('wrap as the earlier ports did', () => {
    const running = new Map([[RUNNING_ID, 77]])
    assert.deepEqual(plan([vm(RUNNING_ID, vsock(7, 9999))], { running }).numbersFrom, { cid: 8, port: 9000 })
  })
})

describe('a record', () => {
  it('that was imported before, has no disk, or no bounds that fit, is told', () => {
    const vms: EarlierVm[] = [
      vm(DEAD_ID),
      { ...vm(OTHER_ID), disk: { problem: 'its disk was not found in /x' } },
      vm(RUNNING_ID, { env_vars: { LARGE: 'x'.repeat(1024 * 1024) } }),
    ]
    const { decisions } = plan(vms, { present: new Map([[DEAD_ID, 'sbx_aaaaaaaaaa']]) })
    const [before, diskless, large] = decisions
    assert.ok(before?.kind === 'present' && before.sandbox === 'sbx_aaaaaaaaaa')
    assert.ok(diskless?.kind === 'refused' && diskless.reason === 'its disk was not found in /x')
    assert.ok(large?.kind === 'refused' && /^env: /.test(large.reason))
  })
})

describe('mending', () => {
  const mended = (over: object) => mendRecord(record(DEAD_ID, over), { defaultLimits: usualLimits, now })

  it('keeps what is right', () => {
    const { shape, image, createdAt, notes } = mended({
      ...{ name: 'web', vcpu: 2, mem_mib: 512, disk_size_mib: 4096 },
      ...{ env_vars: { A: 'b', EMPTY: '' }, metadata: { owner: { team: ['x', null] } } },
    })
    assert.deepEqual([shape.name, shape.vcpu, shape.memoryMib, shape.diskMib], ['web', 2, 512, 4096])
    assert.deepEqual([shape.env, shape.metadata], [{ A: 'b', EMPTY: '' }, { owner: { team: ['x', null] } }])
    assert.deepEqual([image, createdAt, notes], ['alpine:latest', '2026-01-09T12:00:00.500Z', []])
  })

  const names: [string | null, string | undefined][] = [
    ['my vm!', 'my-vm'],
    ['sbx_aaaaaaaaaa', 'aaaaaaaaaa'],
    ['../../etc', 'etc'],
    ['\u001b[31mred\u202e', '31mred'],
    ['x'.repeat(100), 'x'.repeat(64)],
    ['日本', undefined],
    ['', undefined],
    [null, undefined],
  ]
  for (const [given, name] of names)
    it(`makes of the name ${JSON.stringify(given)?.slice(0, 30)} ${name?.slice(0, 20)}`, () => {
      const result = mended({ name: given })
      assert.equal(result.shape.name, name)
      assert.equal(result.notes.length, given === null || given === '' ? 0 : 1)
    })

  it('takes numbers to their bounds, and the earlier defaults for those that are missing', () => {
    const { shape, notes } = mended({ vcpu: 0, mem_mib: 1e12, disk_size_mib: 1.5 })
    assert.deepEqual([shape.vcpu, shape.memoryMib, shape.diskMib], [1, 1_048_576, 64])
    assert.deepEqual(notes, ['vcpu: 0 became 1', 'memoryMib: 1000000000000 became 1048576', 'diskMib: 1.5 became 64'])
    const missing = mended({ vcpu: null, mem_mib: null, disk_size_mib: undefined })
    assert.deepEqual([missing.shape.vcpu, missing.shape.memoryMib, missing.shape.diskMib], [1, 128, 4096])
  })

  it('leaves out variables that were redacted, or that no guest can have, and names them', () => {
    const { shape, notes } = mended({
      env_vars: { KEY: '<redacted>', PORT: 80, OK: 'yes', 'A=B': 'x', NUL: 'a\0b', LIST: [], '': 'x' },
    })
    assert.deepEqual(shape.env, { PORT: '80', OK: 'yes' })
    assert.match(notes[0] ?? '', /redacted there, and have to be given anew: "KEY"$/)
    assert.match(notes[1] ?? '', /: "A=B", "NUL", "LIST", ""$/)
    assert.deepEqual(mended({ env_vars: ['x'] }).shape.env, {})
  })

  it('leaves out metadata that is too large, too deep or none, and keeps the rest', () => {
    const deep = `${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)}`
    for (const metadata of [`{"a":"${'x'.repeat(70_000)}"}`, deep, '[1]', '"text"']) {
      const text = JSON.stringify(earlierRecord(DEAD_ID, { metadata: 'here' })).replace('"here"', metadata)
      const { shape, notes } = mendRecord(parseRecord(`${DEAD_ID}.json`, text), { defaultLimits: usualLimits, now })
      assert.deepEqual(shape.metadata, {})
      assert.match(notes.join(), /its metadata is left out: metadata: /)
    }
    assert.deepEqual(mended({ metadata: null }).notes, [])
  })

  it('gives a time and an image to those that have none, and keeps no control characters', () => {
    for (const created_at of [null, -5, 1e15]) assert.equal(mended({ created_at }).createdAt, now.toISOString())
    assert.equal(mended({ image: null }).image, 'unknown')
    assert.equal(mended({ image: '\u009b31mred\n' }).image, '\ufffd31mred\ufffd')
  })
})
