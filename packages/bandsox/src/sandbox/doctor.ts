/** Examines a host: everything that a sandbox needs, found the same way as a start finds it. */
import { statfs } from 'node:fs/promises'
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { BASE_REFERENCE } from '../image/base.js'
import { ImageStore } from '../image/image-store.js'
import { findFirecracker, type JailerMode } from '../vmm/firecracker/host.js'
import { type HostTools, probeKvm } from '../vmm/host.js'
import { chooseVmm, type VmmName } from '../vmm/host-vmm.js'
import { findQemu, findVsockBackend } from '../vmm/qemu/host.js'
import { readConfiguration } from './configuration.js'
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

export async function examineHost(config: {
  storage: string
  shimPath: string
  searchPath: readonly string[]
  firecracker?: { program?: string | undefined; jailer?: string | undefined }
  configFile?: string
  vmm?: VmmName
  jailer?: JailerMode
  /** With what a host of many tenants should be like. */
  isProduction?: boolean
}): Promise<Check[]> {
  const { storage, searchPath, shimPath: shim } = config
  const tools: HostTools = { shim, searchPath, firecracker: { ...config.firecracker, storage } }
  const [hardening, ...checks] = await Promise.all([
    config.isProduction === true ? examineHardening() : [],
    check('qemu', async () => {
      const { program, version } = await findQemu(tools)
      return { verdict: 'ok', found: `${version}, ${program}` }
    }),
    check('firecracker', () => examineFirecracker(tools)),
    check('vmm', async () => {
      const configured = await readConfiguration(config.configFile)
      const { vmm = configured.vmm, jailer = configured.jailer } = config
      const { name, reason } = await chooseVmm(tools, { vmm, jailer })
      if (vmm !== 'firecracker') return { verdict: 'ok', found: `${name}: ${reason}` }
      // Asked for, it is not replaced by QEMU: then all that it needs must be there.
      const could = await chooseVmm(tools, { vmm: 'auto', jailer })
      if (could.name === 'firecracker') return { verdict: 'ok', found: `${name}: it was asked for; ${could.reason}` }
      return {
        verdict: 'missing',
        found: `${name} was asked for: ${could.reason}`,
        hint: 'let BandSox choose: --vmm auto',
      }
    }),
    check('kvm', async () => {
      const { usable, groups, reason } = await probeKvm(tools)
      if (usable && groups === undefined)
        return { verdict: 'advice', found: `usable for jailed machines alone: ${reason}` }
      if (usable) return { verdict: 'ok', found: 'usable' }
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
async function examineFirecracker(tools: HostTools): Promise<Omit<Check, 'subject'>> {
  try {
    const { version, program, jailer } = await findFirecracker(tools)
    const found = `${version}, ${program}; jailer: ${jailer ?? 'missing'}`
    return jailer === undefined ? { verdict: 'advice', found, hint: FIRECRACKER_HINT } : { verdict: 'ok', found }
  } catch (error) {
    if (!(error instanceof BandSoxError)) throw error
    if (error.code === 'host-missing')
      return {
        verdict: 'advice',
        found: `${error.message}; sandboxes run on QEMU`,
        hint: error.hint ?? FIRECRACKER_HINT,
      }
    return { verdict: 'advice', found: error.message, hint: error.hint ?? FIRECRACKER_HINT }
  }
}

async function check(subject: string, examine: () => Promise<Omit<Check, 'subject'>>): Promise<Check> {
  try {
    return { subject, ...(await examine()) }
  } catch (error) {
    const hint = error instanceof BandSoxError ? error.hint : undefined
    return { subject, verdict: 'missing', found: messageOf(error), ...(hint !== undefined && { hint }) }
  }
}
