/** Makes the built-in image `bandsox/base`: the distribution's static busybox and the few files that a system expects. */
import { type FileHandle, mkdir, open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { downloadPackages, unpackPackage } from '../artifact/apt.js'
import { isStatic } from '../artifact/elf.js'
import { withWorkDirectory } from '../artifact/publish.js'
import { runCommand } from '../process/run.js'
import { baseEntries, packEntries } from './base-files.js'
import { sha256 } from './digest.js'
import type { ImageRecord } from './image-record.js'
import type { ImageStore } from './image-store.js'
import { DEFAULT_LIMITS } from './layer/limits.js'
import type { Platform } from './manifest.js'
import { pullImage } from './pull.js'
import { hasEarlierDisk } from './renew.js'
import { DEFAULT_PATH, singleLayerSource } from './source/single-layer.js'
import type { ImageSource } from './source/source.js'

/** The image that is made on this host, from its busybox, or from the distribution's package of it. */
export const BASE_REFERENCE = 'bandsox/base'
const baseNames: readonly string[] = [BASE_REFERENCE, 'base']
export const isBaseReference = (text: string): boolean => baseNames.includes(text)

/** Label that tells an image of an earlier version of this file; raise it when the image's content changes. */
const VERSION_LABEL = 'dev.bandsox.base.version'
const BASE_VERSION = '1'
const PACKAGE = 'busybox-static'

const config = {
  Env: [DEFAULT_PATH],
  WorkingDir: '/',
  Cmd: ['/bin/sh'],
  Labels: { [VERSION_LABEL]: BASE_VERSION },
}

export interface PrepareBaseOptions {
  store: ImageStore
  platform: Platform
  report?: ((activity: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * Makes the image unless it is there, whole and of this version.
 *
 * @throws `host-missing` without squashfs-tools or a static busybox.
 */
export async function prepareBaseImage({
  store,
  platform,
  report,
  signal,
}: PrepareBaseOptions): Promise<{ image: ImageRecord; made: boolean }> {
  const present = await findCurrent(store)
  if (present !== undefined) return { image: present, made: false }
  report?.('building the base image')
  const source = await withWorkDirectory(store.root, (work) => baseSource(work, platform, signal))
  const { image } = await pullImage({
    ...{ store, source, platform, signal },
    reference: BASE_REFERENCE,
    origin: 'local',
    limits: DEFAULT_LIMITS,
  })
  return { image, made: true }
}

/** The image when it needs no work: a missing, damaged or older one is made anew. */
async function findCurrent(store: ImageStore): Promise<ImageRecord | undefined> {
  const reference = await store.readReference(BASE_REFERENCE)
  const image = reference === undefined ? undefined : await store.readImage(reference.image)
  if (image?.config.labels[VERSION_LABEL] !== BASE_VERSION) return undefined
  return hasEarlierDisk(image) || (await store.findDisk(image.disk)) === undefined ? undefined : image
}

/** Two MiB, kept in memory. */
async function baseSource(work: string, platform: Platform, signal?: AbortSignal): Promise<ImageSource> {
  const { busybox, applets } = await obtainBusybox(work, signal)
  const layer = await buffer(packEntries(baseEntries(busybox, applets)))
  const digest = sha256(layer)
  return singleLayerSource({
    name: BASE_REFERENCE,
    platform,
    config,
    layer: { digest, diffId: digest, size: layer.length },
    open: async function* (offset) {
      yield layer.subarray(offset)
    },
  })
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
