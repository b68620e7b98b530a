/** Decides which kernel modules the guest gets and in which order it loads them. No I/O. */

/** Needed before the root file system stands: buses, disks, the serial link, vsock, the two file systems and the overlay. */
export const bootModules = [
  'virtio_pci', // QEMU q35; Firecracker with --enable-pci
  'virtio_mmio', // Firecracker, QEMU microvm
  'virtio_blk',
  'virtio_console',
  'squashfs',
  'overlay',
  'ext4',
  'vmw_vsock_virtio_transport',
] as const

/** Loaded when the guest already answers, so they cost no start-up time. */
export const lateModules = [
  'virtio_rng',
  'button',
  'evdev',
  'virtio_net',
  'virtio_balloon',
  'tun',
  'fuse',
  'loop',
] as const

export interface ModulePlan {
  /** In load order. */
  boot: string[]
  /** In load order, without those of `boot`. */
  late: string[]
  /** Wanted, and already in the kernel. */
  builtin: string[]
  /** Wanted, and neither loadable nor known to be in the kernel. One with everything built in may come without a list to tell it by. */
  absent: string[]
}

/** The kernel takes `-` and `_` in module names for the same; so do we. Also drops `.ko` and a compression's suffix. */
export const moduleName = (fileName: string): string =>
  fileName.replace(/\.ko(\.(xz|zst|gz))?$/, '').replaceAll('-', '_')

/** Module names in the text of a `modules.builtin`. */
export const parseBuiltin = (text: string): Set<string> =>
  new Set(
    text
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => moduleName(line.slice(line.lastIndexOf('/') + 1))),
  )

export interface PlanInput {
  boot: readonly string[]
  late: readonly string[]
  builtin: ReadonlySet<string>
  /** Names of the modules that `name` needs, or `undefined` when there is no such module. */
  dependenciesOf: (name: string) => Promise<readonly string[] | undefined>
}

/** Resolves the wanted modules with all that they need, each after what it needs. */
export async function planModules({ boot, late, builtin, dependenciesOf }: PlanInput): Promise<ModulePlan> {
  const loaded = new Set<string>()

  /** What is still to be loaded for `name`, in order; `undefined` when something of it does not exist. */
  const closure = async (name: string, above: readonly string[]): Promise<string[] | undefined> => {
    if (builtin.has(name) || loaded.has(name) || above.includes(name)) return []
    const dependencies = await dependenciesOf(name)
    if (dependencies === undefined) return undefined
    const order: string[] = []
    for (const dependency of dependencies) {
      const needed = await closure(dependency, [...above, name])
      if (needed === undefined) return undefined
      order.push(...needed.filter((each) => !order.includes(each)))
    }
    return [...order, name]
  }

  const plan: ModulePlan = { boot: [], late: [], builtin: [], absent: [] }
  for (const [wanted, order] of [
    [boot, plan.boot],
    [late, plan.late],
  ] as const) {
    for (const name of wanted) {
      const needed = await closure(name, [])
      if (builtin.has(name)) plan.builtin.push(name)
      else if (needed === undefined) plan.absent.push(name)
      else order.push(...needed)
      for (const each of needed ?? []) loaded.add(each)
    }
  }
  return plan
}
