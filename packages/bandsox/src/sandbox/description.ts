/** How people and programs tell sandboxes apart: names, labels, metadata. Bounds, checked before anything is touched. */
import { BandSoxError, type Metadata } from '@bandsox/sdk'

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/
const LABEL_KEY = /^[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/
const LABEL_VALUE = /^[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}]{0,255}$/u
const MAX_LABELS = 64
const MAX_METADATA_BYTES = 64 * 1024
const MAX_METADATA_DEPTH = 16

/** @throws `bad-request`. */
export function checkedName(name: string): string {
  if (typeof name !== 'string' || !NAME.test(name))
    throw refuse('name', name, '1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit')
  if (name.startsWith('sbx_')) throw refuse('name', name, 'not beginning with sbx_, which ids do')
  return name
}

/** @throws `bad-request`. */
export function checkedLabels(labels: Record<string, string>): Record<string, string> {
  const entries = Object.entries(labels)
  if (entries.length > MAX_LABELS) throw refuse('labels', `${entries.length} labels`, `at most ${MAX_LABELS}`)
  for (const [key, value] of entries) {
    checkedLabelKey(key)
    if (typeof value !== 'string' || !LABEL_VALUE.test(value))
      throw refuse(`label ${key}`, value, 'at most 255 characters, none of them a control character')
  }
  return labels
}

/** @throws `bad-request`. */
export function checkedLabelKey(key: string): string {
  if (LABEL_KEY.test(key)) return key
  throw refuse('label', key, 'named by 1 to 63 of A-Z a-z 0-9 . _ / -, with a letter or digit at both ends')
}

/** Merges by key; `null` removes. @throws `bad-request`. */
export function changedLabels(
  before: Record<string, string>,
  changes: Record<string, string | null>,
): Record<string, string> {
  const merged = { ...before, ...changes }
  const kept = Object.entries(merged).filter((entry): entry is [string, string] => entry[1] !== null)
  for (const key of Object.keys(changes)) checkedLabelKey(key)
  return checkedLabels(Object.fromEntries(kept))
}

/** @throws `bad-request` for what JSON cannot hold, or is too large or too deep. */
export function checkedMetadata(metadata: Metadata): Metadata {
  if (!isPlainObject(metadata)) throw refuse('metadata', metadata, 'an object')
  requireJson(metadata, 1)
  const bytes = Buffer.byteLength(JSON.stringify(metadata))
  if (bytes > MAX_METADATA_BYTES)
    throw refuse('metadata', `${bytes} bytes`, `at most ${MAX_METADATA_BYTES} bytes as JSON`)
  return metadata
}

function requireJson(value: unknown, depth: number): void {
  if (depth > MAX_METADATA_DEPTH) throw refuse('metadata', 'its depth', `at most ${MAX_METADATA_DEPTH} levels deep`)
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return
  if (typeof value === 'number' && Number.isFinite(value)) return
  if (Array.isArray(value)) for (const each of value) requireJson(each, depth + 1)
  else if (isPlainObject(value)) {
    if (Object.hasOwn(value, '__proto__')) throw refuse('metadata', '__proto__', 'without keys of that name')
    for (const each of Object.values(value)) requireJson(each, depth + 1)
  } else
    throw refuse(
      'metadata',
      String(value),
      'values of JSON: text, finite numbers, true, false, null, lists and objects',
    )
}

const isPlainObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)

const refuse = (what: string, value: unknown, allowed: string): BandSoxError =>
  new BandSoxError(
    'bad-request',
    `${what}: ${JSON.stringify(value) ?? String(value)} is not allowed; it must be ${allowed}`,
  )
