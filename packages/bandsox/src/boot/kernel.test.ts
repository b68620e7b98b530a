import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { pathToFileURL } from 'node:url'
import { gzipSync } from 'node:zlib'
import { elfFile, elfKernel, elfModule } from '../artifact/elf.fixture.js'
import { bzImage } from './bzimage.fixture.js'
import { loadKernel, prepareKernel, verifyKernel } from './kernel.js'
import { bootModules, lateModules } from './modules.js'

const RELEASE = '6.1.0-test'
const elf = elfKernel(RELEASE)

let folder: string
let kernels: string
let source: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bandsox-kernel-'))
  kernels = join(folder, 'boot')
  source = join(folder, 'vmlinuz')
  await writeFile(source, bzImage(gzipSync(elf), RELEASE))
})
afterEach(() => rm(folder, { recursive: true }))

const prepare = (given: { modules?: string; sha256?: string } = {}) =>
  prepareKernel({ directory: kernels, source: { kernel: source, ...given } })

/** What the kernel's build does: compress, and append the unpacked size. */
function compressed(argv: [string, ...string[]]): Buffer {
  const [program, ...args] = argv
  const size = Buffer.alloc(4)
  size.writeUInt32LE(elf.length)
  return Buffer.concat([execFileSync(program, args, { input: elf }), size])
}

test('the ELF kernel inside a bzImage is unpacked, whatever it is compressed with', async () => {
  const payloads = {
    gzip: gzipSync(elf),
    lz4: compressed(['lz4', '-l', '-c']),
    zstd: compressed(['zstd', '-c']),
    xz: compressed(['xz', '-c', '--check=crc32']),
    none: elf,
  }
  for (const [name, payload] of Object.entries(payloads)) {
    await writeFile(source, bzImage(payload, RELEASE))
    const kernel = await prepare()
    assert.deepEqual(await readFile(kernel.vmlinux.path), elf, name)
    assert.equal(kernel.release, RELEASE)
    await rm(kernels, { recursive: true })
  }
})

test('an ELF kernel is taken as it is, its release read from its banner', async () => {
  await writeFile(source, elf)
  const kernel = await prepare()
  assert.deepEqual(await readFile(kernel.vmlinux.path), elf)
  assert.equal(kernel.release, RELEASE)
  assert.equal(kernel.bzImage, undefined)
})

test('modules come decompressed and in load order, those of another release are left out', async () => {
  const root = join(folder, 'lib/modules')
  await mkdir(join(root, RELEASE, 'kernel'), { recursive: true })
  await mkdir(join(root, '5.0.0/kernel'), { recursive: true })
  const write = (path: string, content: Buffer | string) => writeFile(join(root, path), content)
  await write(`${RELEASE}/modules.builtin`, 'kernel/fs/ext4/ext4.ko\n')
  await write(
    `${RELEASE}/kernel/virtio_blk.ko.xz`,
    execFileSync('xz', ['-c'], { input: elfModule(['virtio', 'virtio_ring']) }),
  )
  await write(`${RELEASE}/kernel/virtio.ko.zst`, execFileSync('zstd', ['-c'], { input: elfModule(['virtio_ring']) }))
  await write(`${RELEASE}/kernel/virtio_ring.ko.gz`, gzipSync(elfModule([])))
  await write(`${RELEASE}/kernel/virtio-rng.ko`, elfModule([]))
  await write(`${RELEASE}/kernel/fuse.ko`, elfModule(['not_there']))
  await write(`${RELEASE}/kernel/unwanted.ko`, elfModule([]))
  await write('5.0.0/kernel/overlay.ko', elfModule([]))
  const kernel = await prepare({ modules: root })
  assert.deepEqual(
    kernel.modules.map(({ name, stage }) => `${stage} ${name}`),
    ['boot virtio_ring', 'boot virtio', 'boot virtio_blk', 'late virtio_rng'],
  )
  assert.deepEqual(kernel.builtin, ['ext4'])
  assert.ok(kernel.absent.includes('overlay') && kernel.absent.includes('fuse'))
  const names = kernel.modules.map(({ name }) => `${name}.ko`).sort()
  assert.deepEqual((await readdir(join(kernel.directory, 'modules'))).sort(), names)
  assert.deepEqual(await readFile(join(kernel.directory, 'modules/virtio.ko')), elfModule(['virtio_ring']))
})

test('a kernel with everything built in needs no modules, and says so by the list beside it, where that is', async () => {
  await writeFile(source, elf)
  const unlisted = await prepare()
  assert.deepEqual(unlisted.builtin, [])
  assert.ok(unlisted.absent.includes('squashfs'))
  await rm(kernels, { recursive: true })
  const list = [...bootModules, ...lateModules].map((name) => `kernel/somewhere/${name.replaceAll('_', '-')}.ko\n`)
  await writeFile(join(folder, 'modules.builtin'), list.join(''))
  const listed = await prepare()
  assert.deepEqual(listed.builtin, [...bootModules, ...lateModules])
  assert.deepEqual({ modules: listed.modules, absent: listed.absent }, { modules: [], absent: [] })
  assert.equal(listed.sha256, unlisted.sha256)
})

test('the list beside a kernel is not taken for one that comes with modules', async () => {
  await writeFile(join(folder, 'modules.builtin'), 'kernel/fs/ext4/ext4.ko\n')
  await mkdir(join(folder, 'in'))
  await writeFile(join(folder, 'in/overlay.ko'), elfModule([]))
  assert.deepEqual((await prepare({ modules: join(folder, 'in') })).builtin, [])
})

test('modules may come in a tar', async () => {
  await mkdir(join(folder, 'in'))
  await writeFile(join(folder, 'in/overlay.ko'), elfModule([]))
  execFileSync('tar', ['-c', '-z', '-f', join(folder, 'modules.tar.gz'), '-C', join(folder, 'in'), '.'])
  const kernel = await prepare({ modules: join(folder, 'modules.tar.gz') })
  assert.deepEqual(
    kernel.modules.map(({ name }) => name),
    ['overlay'],
  )
})

test('a prepared kernel is loaded from its folder, and verified against its digests', async () => {
  const kernel = await prepare()
  assert.deepEqual(await loadKernel(kernel.directory), kernel)
  await verifyKernel(kernel)
  await rm(kernel.vmlinux.path)
  await assert.rejects(loadKernel(kernel.directory), { code: 'artifact-damaged', message: /vmlinux is missing/ })
})

test('the same kernel twice is one folder, and a damaged one is repaired', async () => {
  const first = await prepare()
  const [second, third] = await Promise.all([prepare(), prepare()])
  assert.deepEqual([second, third], [first, first])
  await rm(first.vmlinux.path)
  await verifyKernel(await prepare())
  assert.deepEqual(await readdir(kernels), [first.name])
})

test('what is no usable kernel is refused with the reason, and leaves nothing', async () => {
  const refuses = async (content: Buffer, message: RegExp) => {
    await writeFile(source, content)
    await assert.rejects(prepare(), { code: 'bad-request', message })
    assert.deepEqual(await readdir(kernels), [])
  }
  await refuses(Buffer.from('#!/bin/sh\n'), /neither a bzImage nor a 64-bit ELF file/)
  await refuses(elfFile({ segments: [{ type: 1, content: Buffer.from('Linux version 6.1.0 (x)') }] }), /no PVH entry/)
  await refuses(bzImage(Buffer.from('what is this?'), RELEASE), /unknown compression: it starts with 776861742069/)
  await refuses(bzImage(gzipSync(elf), RELEASE).subarray(0, 1700), /cut short/)
  const damaged = gzipSync(elf)
  damaged.fill(0, 20, 60)
  await refuses(bzImage(damaged, RELEASE), /cannot decompress/)
  const lying = compressed(['zstd', '-c'])
  lying.writeUInt32LE(1, lying.length - 4)
  await refuses(bzImage(lying, RELEASE), /unpacks to \d+ bytes instead of 1/)
})

test('a kernel that is not there, or not the one that was meant, is refused', async () => {
  await assert.rejects(prepare({ sha256: '0'.repeat(64) }), { code: 'checksum-mismatch' })
  await assert.rejects(prepare({ modules: join(folder, 'nowhere') }), { code: 'file-not-found' })
  await rm(source)
  await assert.rejects(prepare(), { code: 'file-not-found' })
  assert.deepEqual(await readdir(kernels), [])
})

test('a kernel may come from a URL', async (t) => {
  const server = createServer((request, response) => {
    response.statusCode = request.url === '/vmlinuz' ? 200 : 404
    response.end(request.url === '/vmlinuz' ? bzImage(gzipSync(elf), RELEASE) : '')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => server.close())
  const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const fetched = await prepareKernel({ directory: kernels, source: { kernel: `${base}/vmlinuz` } })
  assert.equal(fetched.origin.kind === 'given' && fetched.origin.kernel, `${base}/vmlinuz`)
  const named = await prepareKernel({ directory: kernels, source: { kernel: pathToFileURL(source).href } })
  assert.equal(named.sha256, fetched.sha256)
  const missing = prepareKernel({ directory: kernels, source: { kernel: `${base}/nothing` } })
  await assert.rejects(missing, { code: 'bad-request', message: /the server answers 404/ })
})

test('preparing ends when it is cancelled', async () => {
  const reason = new Error('enough')
  const cancelled = prepareKernel({ directory: kernels, source: { kernel: source }, signal: AbortSignal.abort(reason) })
  await assert.rejects(cancelled, reason)
  assert.deepEqual(await readdir(kernels), [])
})
