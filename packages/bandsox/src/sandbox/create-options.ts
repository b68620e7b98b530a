/** What may be asked of `create`: bounds and defaults, checked before anything is touched. */
import { BandSoxError, type CreateOptions, type VsockMode } from '@bandsox/sdk'
import { DEFAULT_DISK_MIB } from './prepare.js'

export interface Shape {
  name: string | undefined
  vcpu: number
  memoryMib: number
  diskMib: number
  env: Record<string, string>
  vsock: VsockMode
  bootTimeoutMs: number
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/
const VSOCK_MODES: readonly string[] = ['auto', 'on', 'off']

/** @throws `bad-request` naming the option, what was given and what is allowed. */
export function checkedShape(options: CreateOptions): Shape {
  const { name, env = {}, vsock = 'auto' } = options
  if (name !== undefined && !NAME.test(name)) {
    throw refuse('name', name, '1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit')
  }
  if (name?.startsWith('sbx_')) throw refuse('name', name, 'not beginning with sbx_, which ids do')
  if (!VSOCK_MODES.includes(vsock)) throw refuse('vsock', vsock, VSOCK_MODES.join(', '))
  for (const [key, value] of Object.entries(env)) {
    if (key === '' || /[=\0]/.test(key)) throw refuse('env', key, 'names that are not empty and hold no = and no NUL')
    if (value.includes('\0')) throw refuse('env', key, 'values without NUL')
  }
  return {
    name,
    env,
    vsock,
    vcpu: integer('vcpu', options.vcpu ?? 1, 1, 32),
    memoryMib: integer('memoryMib', options.memoryMib ?? 256, 64, 1_048_576),
    diskMib: integer('diskMib', options.diskMib ?? DEFAULT_DISK_MIB, 64, 1_048_576),
    bootTimeoutMs: integer('bootTimeoutMs', options.bootTimeoutMs ?? 60_000, 1, 3_600_000),
  }
}

function integer(option: string, value: number, min: number, max: number): number {
  if (Number.isSafeInteger(value) && value >= min && value <= max) return value
  throw refuse(option, value, `an integer from ${min} to ${max}`)
}

const refuse = (option: string, value: unknown, allowed: string): BandSoxError =>
  new BandSoxError(
    'bad-request',
    `${option}: ${JSON.stringify(value) ?? String(value)} is not allowed; it must be ${allowed}`,
  )
