/** Results as a table that a person reads, with a verdict where there is a target. Pure. */
import type { Summary } from './statistics.js'

export interface Report {
  subject: string
  /** One line on what was compared, and how often. */
  method: string
  columns: readonly string[]
  rows: readonly (readonly string[])[]
  verdicts: readonly Verdict[]
  /** Every single measurement, for the JSON file. */
  measurements: unknown
}

export interface Verdict {
  figure: string
  value: number
  unit: string
  target: { kind: 'at most' | 'at least'; value: number }
}

export const isMet = ({ value, target }: Verdict): boolean =>
  target.kind === 'at most' ? value <= target.value : value >= target.value

export function formatReport(report: Report): string {
  return [
    report.subject.toUpperCase(),
    report.method,
    '',
    ...formatTable(report.columns, report.rows),
    '',
    ...report.verdicts.map(formatVerdict),
    '',
  ].join('\n')
}

/** Three significant digits tell all that such a measurement knows. */
export function figure(value: number): string {
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3
  return value.toFixed(digits)
}

export const spread = ({ median, min, max }: Summary): string => `${figure(median)} (${figure(min)}–${figure(max)})`

function formatVerdict(verdict: Verdict): string {
  const { figure: name, value, unit, target } = verdict
  const sign = target.kind === 'at most' ? '≤' : '≥'
  return `${isMet(verdict) ? '✓' : '✗'} ${name}: ${value.toFixed(2)}${unit}, target ${sign} ${target.value}${unit}`
}

function formatTable(columns: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const all = [columns, ...rows]
  const widths = columns.map((_, column) => Math.max(...all.map((row) => (row[column] ?? '').length)))
  return all.map((row) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join('  '),
  )
}
