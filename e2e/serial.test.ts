/** A guest without vsock: all that vsock does is done over a serial line, a port's or the console's own. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { openBandSox, type Sandbox } from 'bandsox'
import { linkStatistics } from 'bandsox/internal/process/shim.js'
import { randomBytes } from './support/random.js'
import { isOnFirecracker, onlyOnQemu, temporaryStorage } from './support/storage.js'

/** Sends a file into the guest and takes it back. */
async function exchange(sandbox: Sandbox, content: Buffer): Promise<void> {
  const folder = await mkdtemp(path.join(tmpdir(), 'bandsox-e2e-'))
  try {
    await writeFile(path.join(folder, 'sent'), content)
    const up = await sandbox.files.upload(path.join(folder, 'sent'), '/data/received')
    const down = await sandbox.files.download('/data/received', path.join(folder, 'back'))
    assert.deepEqual([up.link, down.link], ['serial', 'serial'])
    assert.ok((await readFile(path.join(folder, 'back'))).equals(content), 'what came back is what was sent')
  } finally {
    await rm(folder, { recursive: true })
  }
}

async function echo(sandbox: Sandbox): Promise<void> {
  const { exitCode, stdout, link } = await sandbox.exec(['echo', 'over the line']).collect()
  assert.deepEqual({ exitCode, stdout, link }, { exitCode: 0, stdout: 'over the line\n', link: 'serial' })
}

test('a sandbox without vsock runs commands and exchanges files over a serial port', {
  skip: onlyOnQemu('it has no ports, only the UART'),
}, async () => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  const sandbox = await bandsox.create('bandsox/base', { vsock: 'off' })
  await echo(sandbox)
  await exchange(sandbox, randomBytes(1_048_576, 1))
  const { directory, vsock } = await sandbox.info()
  assert.equal(vsock, null)
  const links = await linkStatistics(directory)
  assert.equal(links.vsock, null)
  assert.deepEqual([links.serial?.kind, links.serial?.state], ['port', 'up'])
  assert.ok((links.serial?.toGuestBytes ?? 0) > 1_048_576 && (links.serial?.fromGuestBytes ?? 0) > 1_048_576)
  await sandbox.delete({ force: true })
  await storage.assertNothingLeft()
})

test('a console that carries the link too stays readable, and whole', async (t) => {
  await using storage = await temporaryStorage()
  const configFile = `${storage.folder}.config.json`
  await writeFile(configFile, JSON.stringify({ qemu: { serialLine: 'uart' } }))
  t.after(() => rm(configFile))
  const bandsox = await openBandSox({ storage: storage.folder, configFile })
  const sandbox = await bandsox.create('bandsox/base', { vsock: 'off' })
  await echo(sandbox)
  const lines = 200
  const printing = sandbox.exec(
    `i=0; while [ $i -lt ${lines} ]; do echo "line $i of the console" >/dev/console; i=$((i+1)); done`,
  )
  // Each byte is an exit of the machine there, and of the machine that it is in, maybe.
  await exchange(sandbox, randomBytes(isOnFirecracker ? 65_536 : 262_144, 2))
  assert.equal((await printing.collect()).exitCode, 0)
  const { directory } = await sandbox.info()
  const { serial } = await linkStatistics(directory)
  assert.deepEqual([serial?.kind, serial?.state], ['uart', 'up'])
  await sandbox.stop()
  const console = await readFile(path.join(directory, 'console.log'), 'latin1')
  assert.match(console, /^[\t\r\n\x20-\x7e]*$/, 'the console has bytes that are no text')
  const printed = console.split(/\r?\n/).filter((line) => line.includes('of the console'))
  assert.deepEqual(
    printed,
    Array.from({ length: lines }, (_, index) => `line ${index} of the console`),
  )
  await sandbox.delete({ force: true })
  await storage.assertNothingLeft()
})
