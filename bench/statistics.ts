/** What is said of a list of measurements. Pure. */

export interface Summary {
  median: number
  min: number
  max: number
  count: number
}

export function summarize(values: readonly number[]): Summary {
  return { median: quantile(values, 0.5), min: Math.min(...values), max: Math.max(...values), count: values.length }
}

/**
 * Between two measurements the value is interpolated.
 *
 * @param fraction 0 is the least, 1 the greatest.
 */
export function quantile(values: readonly number[], fraction: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  const position = fraction * (sorted.length - 1)
  const below = sorted[Math.floor(position)] ?? Number.NaN
  const above = sorted[Math.ceil(position)] ?? Number.NaN
  return below + (above - below) * (position - Math.floor(position))
}
