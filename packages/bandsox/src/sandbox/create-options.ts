/** What may be asked of `create`: bounds and defaults, checked before anything is touched. */
import { BandSoxError, type CreateOptions, type Limits, type Metadata, type VsockMode } from '@bandsox/sdk'
import { checkedLabels, checkedMetadata, checkedName } from './description.js'
import { checkedEnv } from './environment.js'
import { checkedLimits } from './limits.js'
import { DEFAULT_DISK_MIB } from './prepare.js'

export interface Shape {
  name: string | undefined
  unique: boolean
  vcpu: number
  memoryMib: number
  diskMib: number
  env: Record<string, string>
  labels: Record<string, string>
  metadata: Metadata
  limits: Limits
  vsock: VsockMode
  bootTimeoutMs: number
}

const VSOCK_MODES: readonly string[] = ['auto', 'on', 'off']
const DEFAULT_BOOT_TIMEOUT_MS = 60_000

/** Smallest and largest. */
export const SHAPE_BOUNDS = {
  vcpu: [1, 32],
  memoryMib: [64, 1_048_576],
  diskMib: [64, 1_048_576],
} as const

/** @throws `bad-request` naming the option, what was given and what is allowed. */
export function checkedShape(options: CreateOptions, defaultLimits: Limits): Shape {
  const { name, vsock = 'auto', unique = false } = options
  if (!VSOCK_MODES.includes(vsock)) throw refuse('vsock', vsock, VSOCK_MODES.join(', '))
  if (unique && name === undefined) throw new BandSoxError('bad-request', 'unique needs a name')
  return {
    name: name === undefined ? undefined : checkedName(name),
    unique,
    env: checkedEnv(options.env ?? {}),
    labels: checkedLabels(options.labels ?? {}),
    metadata: checkedMetadata(options.metadata ?? {}),
    limits: checkedLimits(options.limits ?? {}, defaultLimits),
    vsock,
    vcpu: checkedVcpu(options.vcpu ?? 1),
    memoryMib: checkedMemory(options.memoryMib ?? 256),
    diskMib: integer('diskMib', options.diskMib ?? DEFAULT_DISK_MIB, ...SHAPE_BOUNDS.diskMib),
    bootTimeoutMs: checkedBootTimeout(options.bootTimeoutMs),
  }
}

export const checkedVcpu = (value: number): number => integer('vcpu', value, ...SHAPE_BOUNDS.vcpu)
export const checkedMemory = (value: number): number => integer('memoryMib', value, ...SHAPE_BOUNDS.memoryMib)
export const checkedBootTimeout = (value = DEFAULT_BOOT_TIMEOUT_MS): number =>
  integer('bootTimeoutMs', value, 1, 3_600_000)

function integer(option: string, value: number, min: number, max: number): number {
  if (Number.isSafeInteger(value) && value >= min && value <= max) return value
  throw refuse(option, value, `an integer from ${min} to ${max}`)
}

const refuse = (option: string, value: unknown, allowed: string): BandSoxError =>
  new BandSoxError(
    'bad-request',
    `${option}: ${JSON.stringify(value) ?? String(value)} is not allowed; it must be ${allowed}`,
  )
