/** Reading what the earlier project left, or somebody else put there: nothing outside of the folder is read, and nothing hangs. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdir, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { promisify } from 'node:util'
import {
  DEAD_ID,
  earlierRecord,
  earlierStorage,
  OTHER_ID,
  RUNNING_ID,
  treeDigest,
  writeDisk,
} from '../../testing/earlier-storage.js'
import { hasCode } from '../../testing/errors.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { type EarlierStorage, openEarlierStorage } from './earlier-storage.js'

async function read(folder: string): Promise<EarlierStorage> {
  await using storage = await openEarlierStorage(folder)
  return storage
}

const reasons = ({ damaged }: EarlierStorage) =>
  Object.fromEntries(damaged.map(({ file, reason }) => [file, reason])) as Record<string, string>

const diskOf = (storage: EarlierStorage, id: string) => {
  const disk = storage.vms.find(({ record }) => record.id === id)?.disk
  assert.ok(disk !== undefined, `no record of ${id}`)
  return 'problem' in disk ? disk.problem : disk.name
}

describe('the earlier storage', () => {
  it('is read whole, and left as it is to the last time stamp', async (t) => {
    const folder = await earlierStorage(t, {
      records: [earlierRecord(DEAD_ID), earlierRecord(OTHER_ID, { name: null })],
      cids: { free_cids: [], next_cid: 6 },
      ports: { next_port: 9002, used_ports: [9000, 9001, 9002] },
    })
    const before = await treeDigest(folder)
    const storage = await read(folder)
    assert.deepEqual(
      storage.vms.map(({ record }) => record.id),
      [OTHER_ID, DEAD_ID],
    )
    assert.deepEqual([storage.nextCid, storage.nextPort, storage.problems, storage.damaged], [6, 9002, [], []])
    const [, { record, disk } = assert.fail()] = storage.vms
    assert.deepEqual(
      [record.cid, record.port, record.memoryMib, record.createdAtSeconds],
      [4, 9001, 128, 1_767_960_000.5],
    )
    assert.ok('file' in disk)
    assert.equal(disk.sizeBytes, 8 * 1024 * 1024)
    assert.ok(disk.allocatedBytes < 64 * 1024)
    assert.equal(await treeDigest(folder), before)
  })

  it('is read around every damaged record, each with its reason', async (t) => {
    const id = (digit: number) => `${String(digit).repeat(8)}-50b1-4e29-b2ad-c18768818398`
    const text = (digit: number, over: object) => JSON.stringify({ ...earlierRecord(id(digit)), ...over })
    const folder = await earlierStorage(t, {
      records: [earlierRecord(DEAD_ID)],
      files: {
        'empty.json': '',
        'cut.json': JSON.stringify(earlierRecord(OTHER_ID)).slice(0, 100),
        'list.json': '[]',
        'null.json': 'null',
        'deep.json': '['.repeat(500_000),
        'large.json': ' '.repeat(1024 * 1024 + 1),
        'other.json': JSON.stringify(earlierRecord(OTHER_ID)),
        [`${id(1)}.json`]: text(1, { id: '../../../../etc/passwd' }),
        [`${id(2)}.json`]: text(2, { id: 'sbx_aaaaaaaaaa' }),
        [`${id(3)}.json`]: text(3, { vcpu: 'two' }),
        [`${id(4)}.json`]: text(4, { rootfs_path: 'images/a\0b.ext4' }),
        [`${id(5)}.json`]: text(5, { vsock_config: { cid: 'x' }, created_at: 'yesterday', pid: {}, status: 1 }),
        [`${id(6)}.json`]: `{"id":"${id(6)}","__proto__":{"vcpu":7},"env_vars":{"__proto__":"x"}}`,
        'notes.txt': 'no record',
      },
    })
    await mkdir(path.join(folder, 'metadata/folder.json'))
    await symlink('/etc/passwd', path.join(folder, 'metadata/link.json'))
    await promisify(execFile)('mkfifo', [path.join(folder, 'metadata/fifo.json')])
    const storage = await read(folder)
    const found = reasons(storage)
    const expected: Record<string, RegExp> = {
      'empty.json': /no JSON/,
      'cut.json': /no JSON/,
      'list.json': /expected object/,
      'null.json': /expected object/,
      'deep.json': /no JSON/,
      'large.json': /larger than 1048576 bytes/,
      'other.json': /the id in it is e3039fdb/,
      [`${id(1)}.json`]: /^id: is not an id/,
      [`${id(2)}.json`]: /^id: is not an id/,
      [`${id(3)}.json`]: /^vcpu: /,
      'folder.json': /not a regular file/,
      'link.json': /symbolic link/,
      'fifo.json': /not a regular file/,
    }
    for (const [file, reason] of Object.entries(expected)) assert.match(found[file] ?? 'no reason', reason, file)
    assert.deepEqual(Object.keys(found).sort(), Object.keys(expected).sort())
    assert.deepEqual(
      storage.vms.map(({ record }) => record.id),
      [id(4), id(5), id(6), DEAD_ID],
    )
    const [, odd, proto] = storage.vms.map(({ record }) => record)
    assert.deepEqual([odd?.cid, odd?.createdAtSeconds, odd?.pid, odd?.status], [null, null, null, null])
    assert.equal(proto?.vcpu, null)
  })

  it('gives disks of its own folder images only, and none through a link', async (t) => {
    const folder = await earlierStorage(t, {
      records: [
        earlierRecord(DEAD_ID, { rootfs_path: '/etc/shadow' }),
        earlierRecord(OTHER_ID, { rootfs_path: `../../images/../../../etc/images/${OTHER_ID}.ext4` }),
        earlierRecord(RUNNING_ID, { rootfs_path: './storage/images/kept.ext4' }),
      ],
      diskless: [OTHER_ID, RUNNING_ID],
    })
    await writeDisk(folder, 'kept.ext4')
    const outside = await temporaryFolder(t)
    await writeFile(path.join(outside, 'secret'), 'secret')
    await symlink(path.join(outside, 'secret'), path.join(folder, 'images', `${OTHER_ID}.ext4`))
    const storage = await read(folder)
    assert.equal(diskOf(storage, DEAD_ID), `${DEAD_ID}.ext4`)
    assert.match(
      storage.vms.find(({ record }) => record.id === DEAD_ID)?.notes[0] ?? '',
      /outside of images \(\/etc\/shadow\)/,
    )
    assert.match(diskOf(storage, OTHER_ID), /symbolic link, which is not followed/)
    assert.equal(diskOf(storage, RUNNING_ID), 'kept.ext4')
    // The folders themselves.
    await rename(path.join(folder, 'images'), path.join(outside, 'images'))
    await symlink(path.join(outside, 'images'), path.join(folder, 'images'))
    await assert.rejects(read(folder), hasCode('bad-request', /images is a symbolic link/))
    await rm(path.join(folder, 'images'))
    assert.match(diskOf(await read(folder), DEAD_ID), /^its disk was not found in .*images$/)
    await rename(path.join(folder, 'metadata'), path.join(outside, 'metadata'))
    await symlink(path.join(outside, 'metadata'), path.join(folder, 'metadata'))
    await assert.rejects(read(folder), hasCode('bad-request', /metadata is a symbolic link/))
  })

  it('refuses disks that are no ext4, and those of absurd size', async (t) => {
    const folder = await earlierStorage(t, { records: [earlierRecord(DEAD_ID), earlierRecord(OTHER_ID)] })
    await writeFile(path.join(folder, 'images', `${DEAD_ID}.ext4`), 'short')
    await truncate(path.join(folder, 'images', `${OTHER_ID}.ext4`), 2 * 1024 ** 4)
    const storage = await read(folder)
    assert.match(diskOf(storage, DEAD_ID), /holds no ext4/)
    assert.match(diskOf(storage, OTHER_ID), /larger than/)
  })

  it('is told from other folders, and what cannot be read is an error', async (t) => {
    await assert.rejects(read('/nonexistent'), hasCode('file-not-found'))
    await assert.rejects(read('/etc/passwd'), hasCode('bad-request'))
    await assert.rejects(read(await temporaryFolder(t)), hasCode('bad-request', /no folder metadata/))
    const many = await earlierStorage(t)
    for (let index = 0; index < 10_001; index++) await writeFile(path.join(many, 'metadata', `${index}.json`), '')
    await assert.rejects(read(many), hasCode('bad-request', /10001 records; at most 10000/))
  })

  it('whose allocators are damaged is read without them, and says so', async (t) => {
    const folder = await earlierStorage(t, { records: [earlierRecord(DEAD_ID)], cids: { next_cid: '4' }, ports: [] })
    const storage = await read(folder)
    assert.deepEqual([storage.nextCid, storage.nextPort], [undefined, undefined])
    assert.match(
      storage.problems.join('\n'),
      /^cid_allocator.json is damaged: next_cid: .*\nport_allocator.json is damaged: /,
    )
    assert.equal(storage.vms.length, 1)
  })
})
