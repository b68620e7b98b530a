/** How often a test repeats what it does: bounded in `npm test`, in full in `npm run soak`. */
export const boundedOrFull = (bounded: number, full: number): number =>
  process.env['BANDSOX_SOAK'] === '1' ? full : bounded
