/** How figures and tables look on a terminal. Pure. */
import { printable } from '@bandsox/sdk'
import Table from 'cli-table3'

/** Columns by two spaces, no lines: easy to read, and to cut with awk. */
export function table(head: string[], rows: string[][]): string {
  const none = ''
  const plain = new Table({
    head,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2 },
    chars: {
      ...{ top: none, 'top-mid': none, 'top-left': none, 'top-right': none },
      ...{ bottom: none, 'bottom-mid': none, 'bottom-left': none, 'bottom-right': none },
      ...{ left: none, 'left-mid': none, mid: none, 'mid-mid': none },
      ...{ right: none, 'right-mid': none, middle: none },
    },
  })
  // Cells hold what guests, images and archives say of themselves.
  plain.push(...rows.map((cells) => cells.map(printable)))
  return plain.toString().replace(/ +$/gm, '')
}

export function sizeText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`
}

export const durationText = (ms: number): string => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`)

export const rateText = (bytes: number, ms: number): string => `${sizeText(ms === 0 ? 0 : bytes / (ms / 1000))}/s`

/** `1 layer`, `2 layers`. */
export const counted = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? '' : 's'}`
