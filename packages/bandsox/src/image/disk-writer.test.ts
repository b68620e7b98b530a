import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { lstat, readdir, readFile, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { writeDisk } from './disk-writer.js'
import { digestOf, imageCases, isGood, layersOf, withRoot } from './testing/image-corpus.js'
import { type Described, indexLayers, type Listing, linesOf } from './testing/image-listing.js'
import { file, tar } from './testing/tar-builder.js'

/** Of a listing, with extended attributes as ext4 keeps them; a squashfs keeps more. */
const MAX_LINE = 8000
/** A path that no system call takes, once the folder of the test stands in front of it. */
const MAX_PATH_BYTES = 3900
const isThere = (program: string): boolean => spawnSync(program, ['-version']).error === undefined
const missing = ['sqfstar', 'unsquashfs'].filter((program) => !isThere(program))
const skip = missing.length > 0 ? `${missing.join(' and ')} is not installed: apt-get install squashfs-tools` : false
const skipUnlessRoot = skip || (process.getuid?.() === 0 ? false : 'only root unpacks owners and devices')

const goodCases = imageCases.filter(isGood)

describe(`${goodCases.length} odd images as disks, read by unsquashfs`, {
  skip: skipUnlessRoot,
  concurrency: 2,
}, () => {
  for (const each of goodCases) {
    it(`holds an image with ${each.name}`, async (t) => {
      const folder = await temporaryFolder(t)
      const disk = join(folder, 'disk')
      await writeDisk({ layers: await indexLayers(layersOf(each), each.limits), output: disk })
      if (Object.keys(each.expect).some((path) => path.length > MAX_PATH_BYTES)) {
        const listed = execFileSync('unsquashfs', ['-lln', '-d', '', disk], { encoding: 'latin1', maxBuffer: 2 ** 26 })
        for (const path of Object.keys(each.expect)) assert.ok(listed.includes(` /rootfs/${path}\n`), path.slice(0, 99))
        return
      }
      const hasXattrs = canHoldXattrs(folder) && Object.values(each.expect).every((line) => line.length < MAX_LINE)
      const all = withRoot(each.expect)
      assert.deepEqual(await extracted(disk, join(folder, 'out'), hasXattrs), hasXattrs ? all : withoutXattrs(all))
    })
  }
})

it('ends sqfstar and throws what the layer threw when a layer fails in the middle', { skip }, async (t) => {
  const folder = await temporaryFolder(t)
  const [upper] = await indexLayers(layersOf({ name: '', layers: [tar(file('a', 'x'.repeat(100_000)))], expect: {} }))
  assert.ok(upper)
  const [lower] = [{ tree: Promise.reject(new Error('replaced below')), open: upper.open }]
  lower.tree.catch(() => undefined)
  await assert.rejects(
    writeDisk({ layers: [upper, lower], output: join(folder, 'disk') }),
    hasCode('command-failed', /cannot feed input: replaced below/),
  )
  const lost = layersOf({ name: '', layers: [tar(file('b'))], expect: {} })
  const cut = (await indexLayers(lost)).map(({ tree }) => ({ tree, open: () => emptyTar() }))
  await writeDisk({ layers: cut, output: join(folder, 'without-content') })
  const [whole] = await indexLayers([{ blob: tar(file('c', 'hello')), diffId: digestOf(tar(file('c', 'hello'))) }])
  assert.ok(whole)
  await assert.rejects(
    writeDisk({ layers: [{ tree: whole.tree, open: () => emptyTar() }], output: join(folder, 'cut') }),
    hasCode('artifact-damaged', /the layer ended before "c" did/),
  )
})

async function* emptyTar(): AsyncGenerator<Buffer> {
  yield Buffer.alloc(0)
}

/** Unpacks a disk, and looks at what came. */
async function extracted(disk: string, out: string, withXattrs: boolean): Promise<Listing> {
  execFileSync('unsquashfs', ['-n', '-q', ...(withXattrs ? [] : ['-no-xattrs']), '-d', out, disk], { stdio: 'pipe' })
  const root = join(out, 'rootfs')
  const xattrs = withXattrs ? xattrsBelow(root) : new Map<string, Map<string, Buffer>>()
  const described = new Map<string, Described>()
  const names = new Map<string, string[]>()
  const firstOf = new Map<number, string>()
  async function look(path: Buffer, inImage: string): Promise<void> {
    const stats = await lstat(path)
    const first = firstOf.get(stats.ino)
    if (first !== undefined && !stats.isDirectory()) {
      names.set(first, [...(names.get(first) ?? []), inImage])
      return
    }
    firstOf.set(stats.ino, inImage)
    const kind = stats.isDirectory() ? 'directory' : stats.isSymbolicLink() ? 'symlink' : otherKind(stats)
    const [mode, uid, gid] = [stats.mode & 0o7777, stats.uid, stats.gid]
    const device = { major: (stats.rdev >> 8) & 0xfff, minor: (stats.rdev & 0xff) | ((stats.rdev >> 12) & 0xfff00) }
    described.set(inImage, {
      ...{ kind, mode, uid, gid, mtime: Math.floor(stats.mtimeMs / 1000), device },
      xattrs: xattrs.get(path.toString('latin1')),
      ...(kind === 'symlink' && { target: (await readlink(path, { encoding: 'buffer' })).toString('latin1') }),
      ...(kind === 'file' && { content: await readFile(path) }),
    })
    if (kind !== 'directory') return
    for (const name of await readdir(path, { encoding: 'buffer' })) {
      const child = Buffer.concat([path, Buffer.from('/'), name])
      await look(child, inImage === '/' ? name.toString('latin1') : `${inImage}/${name.toString('latin1')}`)
    }
  }
  await look(Buffer.from(root), '/')
  return linesOf(described, names)
}

function otherKind(stats: Awaited<ReturnType<typeof lstat>>): string {
  if (stats.isCharacterDevice()) return 'character-device'
  if (stats.isBlockDevice()) return 'block-device'
  return stats.isFIFO() ? 'fifo' : 'file'
}

/** Of all files below a folder, by their paths. Only those that have any are printed, with odd bytes in octal. */
function xattrsBelow(folder: string): Map<string, Map<string, Buffer>> {
  const argv = ['-R', '-h', '-d', '-m', '-', '-e', 'hex', '--absolute-names', folder]
  const printed = execFileSync('getfattr', argv, { encoding: 'latin1', maxBuffer: 2 ** 26 })
  const found = new Map<string, Map<string, Buffer>>()
  let current = new Map<string, Buffer>()
  for (const line of printed.split('\n')) {
    const [, path] = /^# file: (.*)$/.exec(line) ?? []
    const [, name, value] = /^([a-z]+\.[^=]+)(?:=0x(.*))?$/.exec(line) ?? []
    if (path !== undefined) {
      current = new Map()
      found.set(
        path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))),
        current,
      )
    } else if (name !== undefined) current.set(name, Buffer.from(value ?? '', 'hex'))
  }
  return found
}

/** Whether the folder's file system keeps extended attributes, and there is a program to read them. */
function canHoldXattrs(folder: string): boolean {
  return (
    spawnSync('setfattr', ['-n', 'user.a', '-v', 'b', folder]).status === 0 &&
    spawnSync('getfattr', ['--version']).status === 0
  )
}

const withoutXattrs = (listing: Listing): Listing =>
  Object.fromEntries(
    Object.entries(listing).map(([path, line]) => [path, line.replace(/ (user|trusted|security)\.\S*/g, '')]),
  )
