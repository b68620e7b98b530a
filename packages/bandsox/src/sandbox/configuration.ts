/** What a user configures, in the file that the environment names: registries, limits and room of images, limits of the host. */

import { readFile } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import * as z from 'zod'
import { DEFAULT_LIMITS } from '../image/layer/limits.js'
import { registryConfigSchema } from '../image/source/registry/registry-config.js'
import type { JailerMode } from '../vmm/firecracker/host.js'
import type { VmmName } from '../vmm/host-vmm.js'

const count = z.int().positive()

const DEFAULT_MEMORY_OVERCOMMIT = 1
export const VMM_NAMES = ['auto', 'firecracker', 'qemu'] as const satisfies VmmName[]
export const JAILER_MODES = ['auto', 'on', 'off'] as const satisfies JailerMode[]
/** The kernel's last; the one above means nobody in particular. */
const MAX_USER = 2 ** 32 - 2
/** Above every range that systemd hands out. */
const DEFAULT_VM_USERS = { first: 1_900_000_000, count: 65_536 }

const configurationSchema = registryConfigSchema.extend({
  images: z
    .strictObject({
      /** Images that nothing uses go, the least recently used first, until all images together have at most this. */
      maxBytes: count.optional(),
      /** What a single image may have; see layer/limits.ts. */
      limits: z
        .strictObject({
          maxBytes: count.default(DEFAULT_LIMITS.maxBytes),
          maxEntries: count.default(DEFAULT_LIMITS.maxEntries),
          maxLayers: count.default(DEFAULT_LIMITS.maxLayers),
          allowDevices: z.boolean().default(DEFAULT_LIMITS.allowDevices),
        })
        .prefault({}),
    })
    .prefault({}),
  qemu: z
    .strictObject({
      /** Of new machines: `uart` is the line that a VMM without virtio-serial has, such as Firecracker; it is slow. */
      serialLine: z.enum(['port', 'uart']).default('port'),
    })
    .prefault({}),
  /** Which VMM new machines get; `auto`: Firecracker where it is installed and KVM works, else QEMU. */
  vmm: z.enum(VMM_NAMES).default('auto'),
  /** Whether Firecracker is put into a jail by its jailer; `auto`: where that can be. */
  jailer: z.enum(JAILER_MODES).default('auto'),
  /** What new sandboxes start from where they can, made by themselves: see docs/snapshots.md. */
  templates: z
    .strictObject({
      enabled: z.boolean().default(true),
      /** The least recently used one goes when there are more. Each takes what an idle guest has in memory. */
      max: z.int().min(1).max(1_000).default(8),
    })
    .prefault({}),
  host: z
    .strictObject({
      /** When root runs us, each VM's processes get a user and a group of their own: this range's, by the VM's CID. */
      vmUsers: z
        .strictObject({ first: z.int().min(1_000).max(MAX_USER), count: z.int().min(1).max(MAX_USER) })
        .refine(({ first, count }) => first + count - 1 <= MAX_USER, 'goes beyond the last user that there is')
        .prefault(DEFAULT_VM_USERS),
      /**
       * How much memory all running sandboxes may have together, as a share of the host's. A guest takes what it touches;
       * with more than 1 the host relies on guests that use less than they have. What a VMM takes for itself comes on top.
       */
      memoryOvercommit: z.number().positive().max(100).default(DEFAULT_MEMORY_OVERCOMMIT),
    })
    .prefault({}),
})

export type Configuration = z.infer<typeof configurationSchema>

/** @returns The defaults when there is no such file. @throws `bad-request` naming the file and the place in it. */
export async function readConfiguration(file: string | undefined): Promise<Configuration> {
  if (file === undefined) return configurationSchema.parse({})
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return configurationSchema.parse({})
    throw error
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new BandSoxError('bad-request', `${file} is no JSON: ${(error as Error).message}`, { cause: error })
  }
  const result = configurationSchema.safeParse(value)
  if (result.success) return result.data
  const [issue] = result.error.issues
  const place = issue === undefined || issue.path.length === 0 ? '' : ` at ${issue.path.join('.')}`
  throw new BandSoxError('bad-request', `${file} is not what it should be${place}: ${issue?.message ?? 'unknown'}`, {
    hint: 'its fields are described in docs/images.md and docs/sandboxes.md',
  })
}
