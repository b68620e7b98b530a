import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { SnapshotInfo } from '@bandsox/sdk'
import { snapshotListText, snapshotShowText } from './snapshot-text.js'

const MIB = 1024 * 1024
const info: SnapshotInfo = {
  ...{ id: 'snp_aaaaaaaaaa', name: 'moment', purpose: 'snapshot', kind: 'full', base: null },
  ...{ sandbox: 'sbx_aaaaaaaaaa', sandboxName: 'db', image: 'alpine', vcpu: 1, memoryMib: 256, diskMib: 4_096 },
  ...{ metadata: {}, vmm: 'qemu 7.2.22', pauseMs: 120, isFrozen: true, restoreCopyBytes: 0 },
  bytes: { memory: 96 * MIB, devices: MIB, disk: 3 * MIB },
  ...{ createdAt: '2026-01-01T00:00:00.000Z', usedAt: null, usedBy: [] },
}

describe('snapshots as a person reads them', () => {
  it('are a line each, with what they take, and what a restore copies', () => {
    assert.equal(snapshotListText([]), 'No snapshots found.')
    const text = snapshotListText([
      info,
      { ...info, id: 'snp_bbbbbbbbbb', name: undefined, purpose: 'template', usedBy: ['sbx_a', 'sbx_b'] },
      { ...info, id: 'snp_cccccccccc', kind: 'diff', base: info.id, restoreCopyBytes: 5 * MIB },
    ])
    const [head = '', one = '', other = '', diff = '', total = ''] = text.split('\n')
    assert.match(head, /^NAME +ID +STATUS +IMAGE +MEMORY +SIZE +RESTORE COPIES +CREATED/)
    assert.match(one, /^moment +snp_aaaaaaaaaa +ready +alpine +256 MiB +100\.0 MiB +0 B +2026/)
    assert.match(other, /^- +snp_bbbbbbbbbb +template, used by 2 /)
    assert.match(diff, /^moment +snp_cccccccccc +diff .* 5\.0 MiB +2026/)
    assert.equal(total, 'Total: 3 snapshot(s)')
  })

  it('show where they come from, and obey no control characters', () => {
    const text = snapshotShowText({
      ...{ ...info, isFrozen: false, metadata: { note: 'a\u001b[2J' }, base: 'snp_bbbbbbbbbb', kind: 'diff' },
      usedBy: ['sbx_a'],
    })
    assert.match(text, /^kind +diff, since snp_bbbbbbbbbb$/m)
    assert.match(text, /^of +sbx_aaaaaaaaaa \(db\)$/m)
    assert.match(text, /^pause +\d+ ms, the guest's programs not frozen before$/m)
    assert.match(text, /^used by +sbx_a$/m)
    assert.ok(!text.includes('\u001b'))
  })
})
