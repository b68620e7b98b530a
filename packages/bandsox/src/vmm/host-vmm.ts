/** The VMM of this host: which driver starts a machine, and which one a machine that runs has. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { readShimConfig } from '../process/shim.js'
import { type FirecrackerSettings, firecrackerDriver } from './firecracker/firecracker.js'
import { chooseJail, findFirecracker } from './firecracker/host.js'
import { type HostTools, type Kvm, probeKvm } from './host.js'
import { lazily } from './lazily.js'
import { linksOf } from './links.js'
import { qemuDriver } from './qemu/qemu.js'
import type { Vmm } from './vmm.js'

/** `auto`: Firecracker where it is installed and KVM works, else QEMU. */
export type VmmName = 'auto' | 'firecracker' | 'qemu'

export interface VmmSettings extends FirecrackerSettings {
  vmm: VmmName
}

const noJailFor = (reason: string): BandSoxError =>
  new BandSoxError('host-unsupported', `a jail is for Firecracker, which needs KVM: ${reason}`, {
    hint: 'do without: --jailer auto',
  })

export interface VmmChoice {
  name: 'firecracker' | 'qemu'
  reason: string
}

/** Which of them a new machine gets, and why. */
export async function chooseVmm(
  tools: HostTools,
  { vmm, jailer }: VmmSettings,
  probed: () => Promise<Kvm> = () => probeKvm(tools),
): Promise<VmmChoice> {
  if (vmm === 'qemu' && jailer === 'on')
    throw new BandSoxError('bad-request', 'QEMU was asked for, and a jail, which is for Firecracker', {
      hint: 'leave out one of the two: --vmm qemu, --jailer on',
    })
  if (vmm !== 'auto') return { name: vmm, reason: 'it was asked for' }
  const { usable, groups, reason } = await probed()
  if (!usable && jailer === 'on') throw noJailFor(reason)
  if (!usable) return { name: 'qemu', reason: `Firecracker needs KVM, which is not usable here: ${reason}` }
  try {
    const found = await findFirecracker(tools)
    const jail = await chooseJail(jailer, found, process.getuid?.() === 0)
    if (groups === undefined && jail.jailer === undefined) return { name: 'qemu', reason }
    return {
      name: 'firecracker',
      reason: `KVM works; ${jail.jailer === undefined ? `no jail: ${jail.reason}` : 'in a jail'}`,
    }
  } catch (error) {
    if (jailer === 'on') throw error // QEMU has no jail
    return { name: 'qemu', reason: messageOf(error) }
  }
}

export function hostVmm(
  tools: HostTools,
  settings: () => Promise<VmmSettings>,
): { vmm: Vmm; choice: () => Promise<VmmChoice> } {
  // Once for all: it starts a process, and a host does not change its hardware while we run.
  const probed = lazily(() => probeKvm(tools))
  const drivers = { firecracker: firecrackerDriver(tools, settings, probed), qemu: qemuDriver(tools, probed) }
  const choice = lazily(async () => await chooseVmm(tools, await settings(), probed))
  const chosen = async (): Promise<Vmm> => drivers[(await choice()).name]
  const vmm: Vmm = {
    start: async (spec) => await (await chosen()).start(spec),
    load: async (spec, state, options) => await (await chosen()).load(spec, state, options),
    mergeState: async (base, diffs, folder, signal) => await (await chosen()).mergeState(base, diffs, folder, signal),
    makeLayer: async (file, sizeBytes) => await (await chosen()).makeLayer(file, sizeBytes),
    checkLayer: async (file, sizeBytes) => await (await chosen()).checkLayer(file, sizeBytes),
    capabilities: async () => await (await chosen()).capabilities(),
    fingerprint: async (spec) => await (await chosen()).fingerprint(spec),
    program: async () => await (await chosen()).program(),
    async attach(directory) {
      const isFirecracker = (await readShimConfig(directory))?.monitor?.kind === 'firecracker'
      return await drivers[isFirecracker ? 'firecracker' : 'qemu'].attach(directory)
    },
    links: linksOf,
    async clear(directory) {
      for (const driver of Object.values(drivers)) await driver.clear(directory)
    },
  }
  return { vmm, choice }
}
