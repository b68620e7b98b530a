/** Makes the built-in image `bandsox/base`: the distribution's static busybox and the few files that a system expects. */
import { createHash } from 'node:crypto'
import { type FileHandle, mkdir, open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { downloadPackages, unpackPackage } from '../artifact/apt.js'
import { isStatic } from '../artifact/elf.js'
import { publishDirectory, publishJson, removeAbandoned, withWorkDirectory } from '../artifact/publish.js'
import { recordFile } from '../artifact/recorded-file.js'
import { runCommand } from '../process/run.js'
import { baseEntries, packEntries } from './base-files.js'
import { BASE_FOLDER, BASE_REFERENCE } from './catalog.js'
import { IMAGE_MANIFEST, type Image, type ImageConfig, type ImageManifest, loadImage } from './image.js'
import { writeSquashfs } from './squashfs.js'

/** Label that tells an image of an earlier version of this file; raise it when the image's content changes. */
const VERSION_LABEL = 'dev.bandsox.base.version'
const BASE_VERSION = '1'
const ROOTFS = 'rootfs.squashfs'
const PACKAGE = 'busybox-static'

const config: ImageConfig = {
  env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
  user: '',
  workingDir: '/',
  entrypoint: [],
  cmd: ['/bin/sh'],
  stopSignal: '',
  labels: { [VERSION_LABEL]: BASE_VERSION },
}

export interface PrepareBaseOptions {
  /** Folder of images. */
  images: string
  report?: ((activity: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * Makes the image unless it is there, whole and of this version.
 *
 * @throws `host-missing` without squashfs-tools or a static busybox.
 */
export async function prepareBaseImage({
  images,
  report,
  signal,
}: PrepareBaseOptions): Promise<{ image: Image; made: boolean }> {
  const directory = join(images, BASE_FOLDER)
  const present = await loadCurrent(directory)
  if (present !== undefined) return { image: present, made: false }
  await removeAbandoned(images)
  report?.('building the base image')
  const make = async (unfinished: string): Promise<string> => {
    const { busybox, applets } = await withWorkDirectory(images, (work) => obtainBusybox(work, signal))
    const entries = packEntries(baseEntries(busybox, applets))
    await writeSquashfs({ entries, output: join(unfinished, ROOTFS), fixedTime: 0, signal })
    const rootfs = await recordFile(unfinished, ROOTFS)
    const digest = createHash('sha256')
      .update(JSON.stringify([config, rootfs.sha256]))
      .digest('hex')
    const manifest: ImageManifest = {
      version: 1,
      name: 'base',
      reference: BASE_REFERENCE,
      digest: `sha256:${digest}`,
      config,
      rootfs,
    }
    await publishJson(join(unfinished, IMAGE_MANIFEST), manifest)
    return BASE_FOLDER
  }
  await publishDirectory(images, make, async (existing) => (await loadCurrent(existing)) !== undefined)
  return { image: await loadImage(directory), made: true }
}

/** The image when it needs no work: a missing, damaged or older one is made anew. */
async function loadCurrent(directory: string): Promise<Image | undefined> {
  try {
    const image = await loadImage(directory)
    return image.config.labels[VERSION_LABEL] === BASE_VERSION ? image : undefined
  } catch (error) {
    if (error instanceof BandSoxError && (error.code === 'image-not-found' || error.code === 'artifact-damaged'))
      return undefined
    throw error
  }
}

/** The host's busybox when it is a static one, else the distribution's package, which needs no installation for it. */
async function obtainBusybox(work: string, signal?: AbortSignal): Promise<{ busybox: Buffer; applets: string[] }> {
  const path = (await findInstalled()) ?? (await downloadBusybox(work, signal))
  const { stdout } = await runCommand([path, '--list-full'], signal === undefined ? {} : { signal })
  return { busybox: await readFile(path), applets: stdout.trim().split('\n') }
}

async function findInstalled(): Promise<string | undefined> {
  for (const path of busyboxPaths('/')) if (await isStaticProgram(path)) return path
  return undefined
}

async function downloadBusybox(work: string, signal?: AbortSignal): Promise<string> {
  const root = join(work, 'root')
  await mkdir(root)
  for (const deb of await downloadPackages([PACKAGE], work, signal)) await unpackPackage(deb, root, signal)
  for (const path of busyboxPaths(root)) if (await isStaticProgram(path)) return path
  throw new BandSoxError('artifact-damaged', `the package ${PACKAGE} holds no static busybox`)
}

/** Debian 12 has it in /bin, later ones in /usr/bin. */
const busyboxPaths = (root: string): string[] => [join(root, 'usr/bin/busybox'), join(root, 'bin/busybox')]

async function isStaticProgram(path: string): Promise<boolean> {
  let file: FileHandle
  try {
    file = await open(path)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return false
    throw error
  }
  try {
    return await isStatic(file)
  } finally {
    await file.close()
  }
}
