/** A VM of the earlier project, with its disk, becomes a sandbox that starts by its old id. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { cp, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { openBandSox, type Sandbox } from 'bandsox'
import { cli } from './support/command-line.js'
import { makeEarlierDisk } from './support/earlier-disk.js'
import { type TestStorage, temporaryStorage } from './support/storage.js'

const OLD_ID = 'e3039fdb-50b1-4e29-b2ad-c18768818398'
const OTHER_ID = 'f368bbe3-50b1-4e29-b2ad-c18768818398'

let folder: string
let storage: TestStorage

before(async () => {
  storage = await temporaryStorage()
  folder = await mkdtemp(path.join(tmpdir(), 'bandsox-earlier-'))
  for (const name of ['metadata', 'images', 'work']) await mkdir(path.join(folder, name))
  const disk = path.join(folder, 'images', `${OLD_ID}.ext4`)
  await makeEarlierDisk(disk, storage.folder, path.join(folder, 'work'))
  await cp(disk, path.join(folder, 'images', `${OTHER_ID}.ext4`))
  for (const id of [OLD_ID, OTHER_ID]) {
    const record = {
      ...{ id, name: `old-${id.slice(0, 8)}`, image: 'alpine:latest', vcpu: 1, mem_mib: 128, disk_size_mib: 128 },
      ...{ rootfs_path: `/var/lib/sandbox/images/${id}.ext4`, status: 'running', pid: 4_194_305, network_config: null },
      ...{ vsock_config: { enabled: true, cid: 4, port: 9001 }, created_at: 1_767_960_000.5 },
      ...{ env_vars: { GREETING: 'hello' }, metadata: { owner: 'me' } },
    }
    await writeFile(path.join(folder, 'metadata', `${id}.json`), JSON.stringify(record))
  }
  await writeFile(path.join(folder, 'cid_allocator.json'), '{"free_cids": [], "next_cid": 6}')
  await writeFile(path.join(folder, 'port_allocator.json'), '{"next_port": 9002, "used_ports": [9001]}')
})

after(async () => {
  await storage[Symbol.asyncDispose]()
  await rm(folder, { recursive: true, force: true })
})

const output = async (sandbox: Sandbox, command: string) => (await sandbox.exec(command).collect()).stdout

const digest = async (file: string) =>
  createHash('sha256')
    .update(await readFile(file))
    .digest('hex')

test('it is imported, starts by its old id with its files whole, and keeps what is written', async () => {
  const source = path.join(folder, 'images', `${OLD_ID}.ext4`)
  const original = await digest(source)
  const imported = await cli(storage.folder, ['import', folder])
  assert.equal(imported.status, 0, `${imported.stdout}${imported.stderr}`)
  assert.match(imported.stdout, /Total: 2 VMs: 2 imported/)

  const started = await cli(storage.folder, ['vm', 'start', OLD_ID])
  assert.equal(started.status, 0, started.stderr)
  const sandbox = await (await openBandSox({ storage: storage.folder })).get(OLD_ID)
  const info = await sandbox.info()
  assert.deepEqual([info.state.kind, info.importedFrom, info.memoryMib], ['running', OLD_ID, 128])
  // The numbers that were given there are not given here.
  assert.deepEqual([info.vsock?.cid, info.vsock?.port], [6, 9002])
  assert.equal(await output(sandbox, 'cat /root/kept'), 'kept\n')
  assert.equal(await output(sandbox, 'cat /root/journaled'), 'after!\n', 'the journal was not replayed')
  assert.equal(await output(sandbox, 'echo $GREETING; pwd; id -un'), 'hello\n/\nroot\n')
  assert.equal(await output(sandbox, 'hostname; ls /ran 2>&1'), 'old-e3039fdb\nls: /ran: No such file or directory\n')
  await sandbox.exec('echo new > /root/new; echo changed > /root/kept; mv /root /moved; rm /init').wait()
  await sandbox.stop()

  // Replayed once; after that nothing is written below the writable layer.
  const disk = path.join(info.directory, 'root.ext4')
  const replayed = await digest(disk)
  assert.notEqual(replayed, original)
  await sandbox.start()
  assert.equal(
    await output(sandbox, 'cat /moved/new /moved/kept /moved/journaled; ls /init 2>&1'),
    [...['new', 'changed', 'after!', 'ls: /init: No such file or directory', '']].join('\n'),
  )
  await sandbox.kill()
  assert.equal(await digest(disk), replayed)
  await sandbox.start()
  assert.equal(await output(sandbox, 'cat /moved/new'), 'new\n')
  await sandbox.stop()
  assert.equal(await digest(source), original)
  assert.ok((await stat(disk)).blocks < (await stat(disk)).size / 512, 'its holes were filled')
})

test('two of one disk run side by side, each with its own', async () => {
  const bandsox = await openBandSox({ storage: storage.folder })
  const [one, other] = [await bandsox.get(OLD_ID), await bandsox.get(OTHER_ID)]
  await one.start()
  await other.start()
  assert.equal(await output(other, 'cat /root/kept /root/journaled'), 'kept\nafter!\n')
  assert.equal(await output(one, 'cat /moved/kept'), 'changed\n')
  const again = await cli(storage.folder, ['import', folder])
  assert.match(again.stdout, /Total: 2 VMs: 2 present/)
  for (const sandbox of [one, other]) await sandbox.delete({ force: true })
  await storage.assertNothingLeft()
})
