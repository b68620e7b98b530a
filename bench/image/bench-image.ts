/**
 * An image of some 500 MB for the benchmarks, made of what is installed on this host: many small files and a few large ones,
 * in layers that add, replace and remove. The same host gives the same layers as long as nothing is installed or removed.
 */
import { appendFile, copyFile, mkdir, readdir, readlink, realpath, rm, stat, symlink } from 'node:fs/promises'
import path from 'node:path'
import {
  addLayer,
  configureImage,
  type ImageRecipe,
  imageOf,
  type PublishedImage,
  runTool,
  testImagesFolder,
  umociUnpack,
} from './test-support.js'

const MB = 1e6
/** Of every file and folder; else each host and each run would make other layers. */
const FIXED_TIME = '@1700000000'

/** With its version. */
const python = await realpath('/usr/bin/python3')

interface Part {
  folder: string
  /** Files are taken until they have so many bytes together. */
  bytes: number
  order: 'smallest first' | 'largest first'
}

/** From the lowest layer; large files in a layer of their own, as an application's binaries are. */
const layers: readonly { name: string; parts: readonly Part[] }[] = [
  {
    name: 'programs and libraries',
    parts: [
      { folder: 'usr/bin', bytes: 110 * MB, order: 'smallest first' },
      { folder: 'usr/lib/x86_64-linux-gnu', bytes: 130 * MB, order: 'smallest first' },
    ],
  },
  {
    name: 'a language',
    parts: [
      { folder: 'usr/lib/python3', bytes: 50 * MB, order: 'smallest first' },
      { folder: `usr/lib/${path.basename(python)}`, bytes: 50 * MB, order: 'smallest first' },
    ],
  },
  {
    name: 'data',
    parts: [
      { folder: 'usr/share/doc', bytes: 40 * MB, order: 'smallest first' },
      { folder: 'usr/share/perl', bytes: 15 * MB, order: 'smallest first' },
      { folder: 'usr/share/zoneinfo', bytes: 5 * MB, order: 'smallest first' },
    ],
  },
  { name: 'large files', parts: [{ folder: 'usr/lib/x86_64-linux-gnu', bytes: 110 * MB, order: 'largest first' }] },
]

const recipe: ImageRecipe = {
  name: 'bench',
  version: 1,
  ingredients: [],
  async make(image, workFolder) {
    const bundle = path.join(workFolder, 'bundle')
    const rootfs = await umociUnpack(image, bundle)
    await addSkeleton(rootfs)
    for (const { name, parts } of layers) {
      for (const part of parts) await copyPart(part, rootfs)
      await fixTimes(rootfs)
      await addLayer(image, bundle, name)
    }
    await changeAndRemove(rootfs)
    await fixTimes(rootfs)
    await addLayer(image, bundle, 'changes and removals')
    await configureImage(image, { env: { PATH: '/usr/bin' }, cmd: ['/usr/bin/python3'] })
  },
}

export const benchImage = (): Promise<PublishedImage> =>
  imageOf(recipe, path.join(path.dirname(testImagesFolder), 'bench-images'))

/** What a Debian has besides, so that its programs run. */
async function addSkeleton(rootfs: string): Promise<void> {
  for (const name of ['bin', 'lib', 'lib64']) await symlink(`usr/${name}`, path.join(rootfs, name))
  await mkdir(path.join(rootfs, 'usr/lib64'), { recursive: true })
  await symlink('../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2', path.join(rootfs, 'usr/lib64/ld-linux-x86-64.so.2'))
  for (const name of ['dev', 'etc', 'proc', 'run', 'sys', 'tmp']) await mkdir(path.join(rootfs, name))
  const needed = [...(await runTool(['ldd', python])).matchAll(/=> (\/\S+)/g)].map(([, name = '']) => name)
  for (const name of [python, ...needed]) {
    const copy = path.join(rootfs, 'usr', name.replace(/^\/usr/, ''))
    await mkdir(path.dirname(copy), { recursive: true })
    await copyFile(name, copy)
  }
}

async function copyPart({ folder, bytes, order }: Part, rootfs: string): Promise<void> {
  const found: { name: string; size: number; isLink: boolean }[] = []
  for (const entry of await readdir(`/${folder}`, { recursive: true, withFileTypes: true })) {
    const name = path.join(entry.parentPath, entry.name)
    if (entry.isSymbolicLink()) found.push({ name, size: 0, isLink: true })
    else if (entry.isFile()) found.push({ name, size: (await stat(name)).size, isLink: false })
  }
  const sign = order === 'smallest first' ? 1 : -1
  found.sort((a, b) => sign * (a.size - b.size) || (a.name < b.name ? -1 : 1))
  let left = bytes
  for (const { name, size, isLink } of found) {
    if (size > left) continue
    left -= size
    const copy = path.join(rootfs, name)
    await mkdir(path.dirname(copy), { recursive: true })
    await rm(copy, { force: true })
    if (isLink) await symlink(await readlink(name), copy)
    else await copyFile(name, copy)
  }
}

const fixTimes = (rootfs: string) =>
  runTool(['find', rootfs, '-exec', 'touch', '--no-dereference', '--date', FIXED_TIME, '{}', '+'])

/** As a later instruction of a Dockerfile does: some files removed, some changed in place. */
async function changeAndRemove(rootfs: string): Promise<void> {
  const documents = path.join(rootfs, 'usr/share/doc')
  const folders = (await readdir(documents, { withFileTypes: true })).filter((entry) => entry.isDirectory())
  const names = folders.map(({ name }) => name).sort()
  for (const [index, name] of names.entries()) {
    if (index % 4 === 0) await rm(path.join(documents, name), { recursive: true })
    else if (index % 4 === 1) await appendFile(path.join(documents, name, 'NEWS'), 'changed\n')
  }
}
