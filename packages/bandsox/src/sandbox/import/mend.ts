/** Makes of an earlier record what a sandbox of ours may be: what is harmless is mended, and told; the rest is refused. Pure. */
import { BandSoxError, type Limits, type Metadata, messageOf, printableLine } from '@bandsox/sdk'
import { checkedShape, SHAPE_BOUNDS, type Shape } from '../create-options.js'
import { checkedMetadata, checkedName } from '../description.js'
import { DEFAULT_DISK_MIB } from '../prepare.js'
import type { EarlierRecord } from './earlier-record.js'

/** What the earlier project gave those who named none. */
const EARLIER_DEFAULTS = { vcpu: 1, memoryMib: 128, diskMib: DEFAULT_DISK_MIB } as const
/** What it wrote in the place of secrets. */
const REDACTED = '<redacted>'
const MAX_IMAGE_LENGTH = 255
/** The last second of the year 9999. */
const LAST_SECOND = 253_402_300_799

export interface MendedRecord {
  shape: Shape
  image: string
  createdAt: string
  /** What was changed, each in a sentence. */
  notes: string[]
}

/** @throws `bad-request` for what cannot be mended. */
export function mendRecord(record: EarlierRecord, options: { defaultLimits: Limits; now: Date }): MendedRecord {
  const notes: string[] = []
  const note = (text: string) => void notes.push(text)
  const name = mendedName(record.name, note)
  const shape = checkedShape(
    {
      ...(name !== undefined && { name }),
      vcpu: mendedNumber('vcpu', record.vcpu, note),
      memoryMib: mendedNumber('memoryMib', record.memoryMib, note),
      diskMib: mendedNumber('diskMib', record.diskMib, note),
      env: mendedEnv(record.env, note),
      metadata: mendedMetadata(record.metadata, note),
    },
    options.defaultLimits,
  )
  const image = mendedImage(record.image)
  return { shape, image, createdAt: mendedTime(record.createdAtSeconds, options.now, note), notes }
}

type Note = (text: string) => void

function mendedName(given: string | null, note: Note): string | undefined {
  if (given === null || given === '') return undefined
  const name = given
    .replace(/[^A-Za-z0-9._-]+/g, '-')
    .replace(/^(?:sbx_|[^A-Za-z0-9])+/, '')
    .slice(0, 64)
    .replace(/-+$/, '')
  try {
    checkedName(name)
  } catch (error) {
    if (!(error instanceof BandSoxError)) throw error
    note(`its name ${quoted(given)} cannot be kept: it has none now`)
    return undefined
  }
  if (name !== given) note(`its name ${quoted(given)} became ${name}`)
  return name
}

function mendedNumber(field: keyof typeof SHAPE_BOUNDS, given: number | null, note: Note): number {
  if (given === null) return EARLIER_DEFAULTS[field]
  const [min, max] = SHAPE_BOUNDS[field]
  const value = Math.min(Math.max(Math.round(given), min), max)
  if (value !== given) note(`${field}: ${given} became ${value}`)
  return value
}

function mendedEnv(given: unknown, note: Note): Record<string, string> {
  if (!isObject(given)) {
    note('its environment is left out: it is not an object')
    return {}
  }
  const kept: [string, string][] = []
  const redacted: string[] = []
  const unfit: string[] = []
  for (const [name, value] of Object.entries(given)) {
    const text = typeof value === 'number' || typeof value === 'boolean' ? String(value) : value
    if (text === REDACTED) redacted.push(name)
    else if (typeof text !== 'string' || name === '' || /[=\0]/.test(name) || text.includes('\0')) unfit.push(name)
    else kept.push([name, text])
  }
  if (redacted.length > 0) note(`variables that were redacted there, and have to be given anew: ${listed(redacted)}`)
  if (unfit.length > 0) note(`variables that are left out, since a guest cannot have them: ${listed(unfit)}`)
  return Object.fromEntries(kept)
}

function mendedMetadata(given: unknown, note: Note): Metadata {
  try {
    return checkedMetadata(given as Metadata) // which is what it finds out
  } catch (error) {
    if (!(error instanceof BandSoxError)) throw error
    note(`its metadata is left out: ${messageOf(error)}`)
    return {}
  }
}

function mendedImage(given: string | null): string {
  const image = printableLine(given ?? '')
    .trim()
    .slice(0, MAX_IMAGE_LENGTH)
  return image === '' ? 'unknown' : image
}

function mendedTime(seconds: number | null, now: Date, note: Note): string {
  if (seconds !== null && seconds >= 0 && seconds <= LAST_SECOND) return new Date(seconds * 1000).toISOString()
  note('it does not tell when it was created: now')
  return now.toISOString()
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

const MAX_QUOTED = 80
const quoted = (text: string) => JSON.stringify(text.length > MAX_QUOTED ? `${text.slice(0, MAX_QUOTED)}…` : text)

const MAX_LISTED = 10
const listed = (names: string[]) =>
  `${names.slice(0, MAX_LISTED).map(quoted).join(', ')}${names.length > MAX_LISTED ? `, and ${names.length - MAX_LISTED} more` : ''}`
