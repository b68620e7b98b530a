/** Examines a host: everything that a sandbox needs, found the same way as a start finds it. */
import { existsSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { BASE_REFERENCE } from '../image/base.js'
import { ImageStore } from '../image/image-store.js'
import { runCommand } from '../process/run.js'
import { findInstalledFirecracker } from '../vmm/firecracker/installed.js'
import { findQemu, findVsockBackend, probeAcceleration } from '../vmm/qemu/host.js'
import { examineHardening } from './host-hardening.js'
import { loadBoot, storageFolders } from './prepare.js'

export interface Check {
  subject: string
  /** `slow`: it works, but not as well as it could. `advice`: it is not needed, and recommended. */
  verdict: 'ok' | 'slow' | 'advice' | 'missing'
  found: string
  hint?: string
}

/** Less than this, and a few sandboxes may fill the disk. */
const ROOMY_DISK_BYTES = 2 * 1024 ** 3
const PROBE_TIMEOUT_MS = 10_000

export async function examineHost(config: {
  storage: string
  shimPath: string
  searchPath: readonly string[]
  /** With what a host of many tenants should be like. */
  isProduction?: boolean
}): Promise<Check[]> {
  const tools = { shim: config.shimPath, searchPath: config.searchPath }
  const [hardening, ...checks] = await Promise.all([
    config.isProduction === true ? examineHardening() : [],
    check('qemu', async () => {
      const { program, version } = await findQemu(tools)
      return { verdict: 'ok', found: `${version}, ${program}` }
    }),
    check('firecracker', () => examineFirecracker(config)),
    check('kvm', async () => {
      const { kind, reason } = await probeAcceleration(tools)
      if (kind === 'kvm') return { verdict: 'ok', found: 'usable' }
      const hint =
        'sandboxes run by emulation, several times slower; use a host with hardware virtualization, or join the group kvm'
      return { verdict: 'slow', found: `not usable: ${reason}`, hint }
    }),
    check('vsock', async () => {
      const backend = await findVsockBackend(tools)
      if (backend.kind === 'none') {
        return {
          verdict: 'slow',
          found: `${backend.reason}; sandboxes are reached over a serial line`,
          hint: backend.hint,
        }
      }
      return {
        verdict: 'ok',
        found: backend.kind === 'kernel' ? 'the kernel (/dev/vhost-vsock)' : `vhost-device-vsock, ${backend.program}`,
      }
    }),
    check('kernel', async () => {
      const { kernel, initramfs } = await loadBoot(config.storage)
      return { verdict: 'ok', found: `${kernel.release}, initramfs ${initramfs.sha256.slice(0, 12)}` }
    }),
    check('image', async () => {
      const store = new ImageStore(storageFolders(config.storage).images)
      const reference = await store.readReference(BASE_REFERENCE)
      const image = reference === undefined ? undefined : await store.readImage(reference.image)
      if (image === undefined || (await store.findDisk(image.disk)) === undefined) {
        return { verdict: 'missing', found: `${BASE_REFERENCE} is not made`, hint: 'make it: bandsox init' }
      }
      return { verdict: 'ok', found: `${BASE_REFERENCE} ${image.id.slice(0, 19)}` }
    }),
    check('storage', async () => {
      const { bavail, bsize } = await statfs(config.storage)
      const found = `${config.storage}, ${((bavail * bsize) / 1024 ** 3).toFixed(1)} GiB free`
      if (bavail * bsize >= ROOMY_DISK_BYTES) return { verdict: 'ok', found }
      return { verdict: 'slow', found, hint: 'free some space, or use another folder: --storage' }
    }),
  ])
  return [...checks, ...hardening]
}

const FIRECRACKER_HINT = 'get it: bandsox init --skip-kernel --skip-image --skip-disk'

/** Sandboxes run without it, so nothing that is wrong with it is more than a matter for advice. */
async function examineFirecracker(host: FirecrackerPlaces): Promise<Omit<Check, 'subject'>> {
  try {
    return await findFirecracker(host)
  } catch (error) {
    if (!(error instanceof BandSoxError)) throw error
    return { verdict: 'advice', found: error.message, hint: error.hint ?? FIRECRACKER_HINT }
  }
}

interface FirecrackerPlaces {
  storage: string
  searchPath: readonly string[]
}

/** What init has put there comes first, then what the host has. */
async function findFirecracker({ storage, searchPath }: FirecrackerPlaces): Promise<Omit<Check, 'subject'>> {
  const installed = await findInstalledFirecracker(storage)
  const firecracker = installed?.firecracker ?? findOn(searchPath, 'firecracker')
  if (firecracker === undefined)
    return { verdict: 'advice', found: 'not installed; sandboxes run on QEMU', hint: FIRECRACKER_HINT }
  const jailer = installed === undefined ? findOn(searchPath, 'jailer') : installed.jailer
  const found = `${await versionOf(firecracker)}, ${firecracker}; jailer: ${jailer ?? 'missing'}`
  return jailer === undefined ? { verdict: 'advice', found, hint: FIRECRACKER_HINT } : { verdict: 'ok', found }
}

const findOn = (searchPath: readonly string[], name: string): string | undefined =>
  searchPath.map((folder) => join(folder, name)).find((file) => existsSync(file))

/** By running it: a file of the right name may be for another processor. */
async function versionOf(program: string): Promise<string> {
  const { stdout } = await runCommand([program, '--version'], { timeoutMs: PROBE_TIMEOUT_MS })
  const version = /^Firecracker v(\d\S*)/m.exec(stdout)?.[1]
  if (version !== undefined) return version
  throw new BandSoxError('host-unsupported', `${program} is no Firecracker: it does not tell its version`)
}

async function check(subject: string, examine: () => Promise<Omit<Check, 'subject'>>): Promise<Check> {
  try {
    return { subject, ...(await examine()) }
  } catch (error) {
    const hint = error instanceof BandSoxError ? error.hint : undefined
    return { subject, verdict: 'missing', found: messageOf(error), ...(hint !== undefined && { hint }) }
  }
}
