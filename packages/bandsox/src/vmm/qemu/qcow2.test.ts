import assert from 'node:assert/strict'
import { open, readFile, rename, stat, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { runCommand } from '../../process/run.js'
import { hasCode } from '../../testing/errors.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { findProgram } from '../host.js'
import { checkLayer, createLayer, headFlaw } from './qcow2.js'

const MIB = 1024 * 1024
const GIB = 1024 * MIB
const TIB = 1024 * GIB
const searchPath = (process.env['PATH'] ?? '').split(':')
const qemu = await findProgram('qemu-system-x86_64', searchPath)
const qemuImg = await findProgram('qemu-img', searchPath)

async function layerIn(t: TestScope, sizeBytes = GIB): Promise<string> {
  const file = path.join(await temporaryFolder(t), 'layer.qcow2')
  await createLayer(file, sizeBytes)
  return file
}

async function overwrite(file: string, offset: number, bytes: Buffer): Promise<void> {
  const handle = await open(file, 'r+')
  await handle.write(bytes, 0, bytes.length, offset)
  await handle.close()
}

const word = (value: number) => Buffer.from([value >>> 24, value >>> 16, value >>> 8, value])
const long = (value: bigint) => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(value)
  return bytes
}
const DIRTY = long(1n)

/** What QEMU says of a layer that it has opened for writing, and what it complained of. */
async function openedByQemu(file: string): Promise<{ sizeBytes: number; complaints: string }> {
  const node = { driver: 'qcow2', 'node-name': 'layer', backing: null, file: { driver: 'file', filename: file } }
  const commands = [
    { execute: 'qmp_capabilities' },
    { execute: 'blockdev-add', arguments: node },
    { execute: 'query-named-block-nodes', arguments: { flat: true } },
    { execute: 'quit' },
  ]
  const { stdout, stderr } = await runCommand(
    [qemu ?? '', '-machine', 'none', '-nodefaults', '-display', 'none', '-qmp', 'stdio'],
    { input: `${commands.map((command) => JSON.stringify(command)).join('\n')}\n`, timeoutMs: 60_000 },
  )
  const answers = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { return?: { 'node-name': string; image: { 'virtual-size': number } }[] })
  const nodes = answers.map((answer) => answer.return).find((answer) => Array.isArray(answer))
  const layer = nodes?.find((each) => each['node-name'] === 'layer')
  assert.ok(layer, stdout)
  return { sizeBytes: layer.image['virtual-size'], complaints: stderr }
}

describe('an empty layer', () => {
  it('is accepted by our own check, takes little room, and is nobody else’s', async (t) => {
    for (const sizeBytes of [512, 512 * MIB, 512 * MIB + 512, 10 * GIB, TIB]) {
      const file = await layerIn(t, sizeBytes)
      await checkLayer(file, sizeBytes)
      const { size, blocks, mode } = await stat(file)
      assert.deepEqual([size, mode & 0o777], [4 * 65_536, 0o600])
      assert.ok(blocks * 512 <= 64 * 1024, `${blocks} blocks`)
    }
  })

  it('is what QEMU takes for one, and finds no fault with', {
    skip: qemu === undefined && 'qemu-system-x86_64 is not installed',
  }, async (t) => {
    for (const sizeBytes of [512, 512 * MIB + 512, TIB]) {
      const file = await layerIn(t, sizeBytes)
      assert.deepEqual(await openedByQemu(file), { sizeBytes, complaints: '' })
      await checkLayer(file, sizeBytes)
      // One that was not closed is checked by QEMU itself, which tells of each cluster that it repairs.
      await overwrite(file, 72, DIRTY)
      assert.deepEqual(await openedByQemu(file), { sizeBytes, complaints: '' })
      assert.deepEqual((await readFile(file)).subarray(72, 80), long(0n), 'it was checked')
      await checkLayer(file, sizeBytes) // with a header that is QEMU's now
      await overwrite(file, 72, DIRTY)
      await overwrite(file, 2 * 65_536 + 6, Buffer.from([0, 9]))
      assert.match((await openedByQemu(file)).complaints, /cluster 3 refcount=9/, 'it would have told')
    }
  })

  it('is what qemu-img finds no fault with', {
    skip: qemuImg === undefined && 'qemu-img is not installed',
  }, async (t) => {
    const file = await layerIn(t, TIB)
    const { stdout } = await runCommand([qemuImg ?? '', 'check', '-f', 'qcow2', file])
    assert.match(stdout, /No errors were found/)
  })

  it('has a size that a disk can have, and takes no file’s place', async (t) => {
    const file = await layerIn(t)
    for (const sizeBytes of [0, -512, 511, 4 * TIB + 512, Number.NaN, 1024.5])
      await assert.rejects(createLayer(`${file}.no`, sizeBytes), hasCode('bad-request', /multiple of 512/))
    await assert.rejects(createLayer(file, GIB), hasCode('bad-request', /there is such a file/))
    await checkLayer(file, GIB)
  })
})

describe('the check of a layer', () => {
  const cases: [string, number, Buffer, RegExp][] = [
    ['is another format', 0, word(0x4b444d56), /not a qcow2 file/],
    ['is an older version', 4, word(2), /version 2, not 3/],
    ['names a file below it', 8, long(4096n), /names a file below it/],
    ['has the length of such a name', 16, word(11), /names a file below it/],
    ['has other clusters', 20, word(9), /clusters or counts/],
    ['has another size', 24, long(BigInt(GIB) + 512n), /a disk of 1073742336 bytes, not 1073741824/],
    ['has an endless size', 24, long(2n ** 64n - 512n), /a disk of 18446744073709551104 bytes/],
    ['is encrypted', 32, word(2), /encrypted/],
    ['has a huge table', 36, word(0x7fffffff), /table has 2147483647 entries/],
    ['has its table nowhere', 40, long(0n), /not in it/],
    ['has its table elsewhere', 40, long(2n ** 40n), /not in it/],
    ['has its table askew', 40, long(0x30001n), /not in it/],
    ['has its counts elsewhere', 48, long(2n ** 63n), /not in it/],
    ['has snapshots', 60, word(1), /snapshots/],
    ['was not closed', 72, DIRTY, /was not closed/],
    ['is corrupt', 72, long(2n), /marked as corrupt/],
    ['keeps its data elsewhere', 72, long(4n), /data in another file/],
    ['has another compression', 72, long(8n), /ours have not \(0x8\)/],
    ['has a feature of the future', 72, long(2n ** 63n), /ours have not \(0x8000000000000000\)/],
    ['is to be left open', 80, long(1n), /ours have not \(0x1\)/],
    ['has bitmaps', 88, long(1n), /ours have not \(0x1\)/],
    ['has other counts', 96, word(6), /clusters or counts/],
    ['has a long header', 100, word(4096), /header has 4096 bytes/],
    [
      'has a format for what is below',
      104,
      Buffer.concat([word(0xe2792aca), word(3)]),
      /the format of a file below it/,
    ],
    ['names a file for its data', 104, Buffer.concat([word(0x44415441), word(11)]), /the name of a file for its data/],
    ['has another extension', 104, Buffer.concat([word(0x12345678), word(0)]), /0x12345678/],
    ['has an endless extension', 104, Buffer.concat([word(0x6803f857), word(0xffffffff)]), /does not end/],
  ]

  it('refuses what QEMU would make something of that is not ours', async (t) => {
    const good = await layerIn(t)
    const bytes = await readFile(good)
    for (const [what, offset, forged, message] of cases) {
      const file = `${good}.forged`
      const copy = Buffer.from(bytes)
      forged.copy(copy, offset)
      await writeFile(file, copy)
      await assert.rejects(checkLayer(file, GIB), hasCode('artifact-damaged', message), what)
    }
  })

  it('takes a header that QEMU has written anew, with names of features', () => {
    const head = Buffer.alloc(4096)
    const build = (namesBytes: number) => {
      const made = Buffer.from(head)
      const put = (offset: number, bytes: Buffer) => bytes.copy(made, offset)
      put(0, Buffer.concat([word(0x514649fb), word(3), long(0n), word(0), word(16), long(BigInt(GIB))]))
      put(32, Buffer.concat([word(0), word(2), long(0x30000n), long(0x10000n), word(1)]))
      put(96, Buffer.concat([word(4), word(112)]))
      put(112, Buffer.concat([word(0x6803f857), word(namesBytes)]))
      return made
    }
    const sizes = { sizeBytes: GIB, fileBytes: 262_144 }
    assert.equal(headFlaw(build(384), sizes), undefined)
    assert.equal(headFlaw(build(383), sizes), undefined, 'it is padded')
    assert.match(headFlaw(build(4096), sizes) ?? '', /does not end/)
    const zstd = build(384)
    zstd[104] = 1
    assert.match(headFlaw(zstd, sizes) ?? '', /compressed/)
  })

  it('opens files only, and none that another name leads to', async (t) => {
    const good = await layerIn(t)
    await symlink(good, `${good}.link`)
    await assert.rejects(checkLayer(`${good}.link`, GIB), hasCode('artifact-damaged', /symbolic link/))
    await runCommand(['mkfifo', `${good}.fifo`])
    await assert.rejects(checkLayer(`${good}.fifo`, GIB), hasCode('artifact-damaged', /not a file/))
    await writeFile(`${good}.short`, (await readFile(good)).subarray(0, 100))
    await assert.rejects(checkLayer(`${good}.short`, GIB), hasCode('artifact-damaged', /ends after 100 bytes/))
    await rename(good, `${good}.moved`)
    await assert.rejects(checkLayer(good, GIB), { code: 'ENOENT' })
  })
})
