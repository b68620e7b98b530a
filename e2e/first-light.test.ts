/** The main path, once from end to end: create, run, upload, download, delete. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { openBandSox } from 'bandsox'
import { randomBytes } from './support/random.js'
import { temporaryStorage } from './support/storage.js'

test('a sandbox boots, runs a command, exchanges a checksummed file over vsock, and leaves nothing behind', async () => {
  await using storage = await temporaryStorage()
  const local = await mkdtemp(path.join(tmpdir(), 'bandsox-e2e-'))
  try {
    const bandsox = await openBandSox({ storage: storage.folder })
    const sandbox = await bandsox.create('bandsox/base', { name: 'first-light' })

    const result = await sandbox.exec(['echo', 'hello from the guest']).collect()
    assert.deepEqual(
      { exitCode: result.exitCode, stdout: result.stdout, stderr: result.stderr, link: result.link },
      { exitCode: 0, stdout: 'hello from the guest\n', stderr: '', link: 'vsock' },
    )

    const content = randomBytes(3_000_001, 1)
    await writeFile(path.join(local, 'sent'), content, { mode: 0o640 })
    const up = await sandbox.files.upload(path.join(local, 'sent'), '/data/received')
    assert.equal(up.sizeBytes, content.length)
    assert.equal(up.link, 'vsock')

    const inGuest = await sandbox.exec(['sha256sum', '/data/received']).collect()
    assert.equal(inGuest.stdout.split(' ')[0], createHash('sha256').update(content).digest('hex'))

    const down = await sandbox.files.download('/data/received', path.join(local, 'back'))
    assert.deepEqual(down.checksum, up.checksum)
    assert.ok((await readFile(path.join(local, 'back'))).equals(content))
    assert.equal((await stat(path.join(local, 'back'))).mode & 0o777, 0o640)

    const info = await sandbox.info()
    assert.equal(info.state.kind, 'running')
    assert.equal(info.vsock?.cid, 3)
    assert.equal(info.vsock?.port, 9000)

    await sandbox.delete({ force: true })
    assert.deepEqual(await bandsox.list(), [])
    await storage.assertNothingLeft()
  } finally {
    await rm(local, { recursive: true })
  }
})
