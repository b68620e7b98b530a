import assert from 'node:assert/strict'
import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { elfKernel, elfModule } from '../artifact/elf.fixture.js'
import { loadBootFiles, prepareBoot, verifyBootFiles } from './boot.js'
import { bzImage } from './bzimage.fixture.js'

let folder: string
let boot: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bandsox-boot-'))
  boot = join(folder, 'boot')
  await writeFile(join(folder, 'vmlinux'), elfKernel('6.1.0'))
  await mkdir(join(folder, 'modules'))
  await writeFile(join(folder, 'modules/overlay.ko'), elfModule([]))
  await writeFile(join(folder, 'agent'), 'an agent')
})
afterEach(() => rm(folder, { recursive: true }))

/** @param kernel None: whatever is there. */
const prepare = (kernel?: string) => {
  const kernelSource =
    kernel === undefined ? undefined : { kernel: join(folder, kernel), modules: join(folder, 'modules') }
  return prepareBoot({ directory: boot, agentPath: join(folder, 'agent'), kernelSource })
}
const first = () => prepare('vmlinux')

/** What a file of an archive holds: cpio's "newc", see cpio.ts. */
async function fileOf(archive: string, path: string): Promise<Buffer> {
  const content = await readFile(archive)
  const padded = (at: number) => Math.ceil(at / 4) * 4
  const nameAt = content.indexOf(`${path}\0`)
  assert.ok(nameAt > 0, path)
  const sizeBytes = Number.parseInt(content.toString('latin1', nameAt - 110 + 54, nameAt - 110 + 62), 16)
  const dataAt = padded(nameAt + path.length + 1)
  return content.subarray(dataAt, dataAt + sizeBytes)
}

test('the first time makes both, the second time neither', async () => {
  const { boot: made, made: what } = await first()
  assert.deepEqual(what, ['kernel', 'initramfs'])
  const again = await prepare()
  assert.deepEqual(again, { boot: made, made: [] })
  assert.deepEqual(await loadBootFiles(boot), made)
  await verifyBootFiles(boot)
})

test('the initramfs begins with the folders and holds the agent as /init', async () => {
  const { boot: made } = await first()
  const archive = (await readFile(made.initramfs.path)).toString('latin1')
  for (const part of [
    'dev/console',
    'dev/null',
    'init\0',
    'an agent',
    'modules/load.boot',
    'modules/load.late',
    'newroot',
  ]) {
    assert.ok(archive.includes(part), part)
  }
  assert.equal(archive.length % 4, 0)
})

test('for a kernel without modules, as an ELF or a bzImage, the initramfs has lists of none that are not empty', async () => {
  await writeFile(join(folder, 'bzImage'), bzImage(gzipSync(elfKernel('6.1.0')), '6.1.0'))
  for (const name of ['vmlinux', 'bzImage']) {
    const kernelSource = { kernel: join(folder, name) }
    const { boot: made } = await prepareBoot({ directory: boot, agentPath: join(folder, 'agent'), kernelSource })
    assert.deepEqual(made.kernel.modules, [])
    assert.deepEqual(await fileOf(made.initramfs.path, 'modules/load.boot'), Buffer.from('\n'), name)
    assert.deepEqual(await fileOf(made.initramfs.path, 'modules/load.late'), Buffer.from('\n'), name)
  }
})

test('a new agent makes a new initramfs under another name, and the old one stays for who is about to use it', async () => {
  const { boot: old } = await first()
  await writeFile(join(folder, 'agent'), 'a newer agent')
  const { boot: made, made: what } = await prepare()
  assert.deepEqual(what, ['initramfs'])
  assert.notEqual(made.initramfs.path, old.initramfs.path)
  assert.equal(made.kernel.directory, old.kernel.directory)
  assert.ok((await readFile(old.initramfs.path)).includes('an agent'))
})

test('another kernel is taken when it is asked for, and kept when nothing is asked for', async () => {
  await first()
  await writeFile(join(folder, 'other'), elfKernel('6.12.0'))
  assert.deepEqual((await prepare('other')).made, ['kernel', 'initramfs'])
  assert.deepEqual((await prepare('other')).made, [])
  const { boot: kept, made } = await prepare()
  assert.equal(kept.kernel.release, '6.12.0')
  assert.deepEqual(made, [])
  await writeFile(join(folder, 'other'), elfKernel('6.18.0'))
  assert.equal((await prepare('other')).boot.kernel.release, '6.18.0')
})

test('the same kernel from another place is that kernel, prepared once', async () => {
  const { boot: made } = await first()
  await copyFile(join(folder, 'vmlinux'), join(folder, 'copy'))
  const { boot: again } = await prepare('copy')
  assert.equal(again.kernel.sha256, made.kernel.sha256)
  assert.deepEqual((await prepare('copy')).made, [])
})

test('a damaged file is named when it is used, and made anew by the next preparation', async () => {
  const { boot: made } = await first()
  await chmod(made.initramfs.path, 0o644)
  await writeFile(made.initramfs.path, 'cut')
  await assert.rejects(loadBootFiles(boot), { code: 'artifact-damaged', message: /initramfs-\w+\.cpio has 3 bytes/ })
  assert.deepEqual((await prepare()).made, ['initramfs'])
  await writeFile(join(boot, 'boot.json'), '{')
  await assert.rejects(loadBootFiles(boot), { code: 'artifact-damaged', message: /boot\.json/ })
  await first()
  await verifyBootFiles(boot)
})

test('a damaged kernel that the user gave is made from the same source again', async () => {
  const { boot: made } = await first()
  await rm(made.kernel.vmlinux.path)
  const { boot: repaired, made: what } = await prepare()
  assert.deepEqual(repaired, made)
  assert.deepEqual(what, ['kernel', 'initramfs'])
})

test('two at once leave one whole set', async () => {
  await Promise.all([first(), first(), first()])
  await verifyBootFiles(boot)
  assert.equal((await readdir(boot)).length, 3)
})

test('a host that was never prepared says how to prepare it', async () => {
  await assert.rejects(loadBootFiles(boot), { code: 'host-missing', hint: 'prepare this host: npm run setup' })
})

test('an agent that is not built is named', async () => {
  await rm(join(folder, 'agent'))
  await assert.rejects(first(), { code: 'host-missing', message: /the guest agent .*agent is not built/ })
})
