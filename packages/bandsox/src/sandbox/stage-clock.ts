/** How long each stage of a start took. */

export interface StageClock {
  /** Ends the stage that began with the mark before. */
  mark(stage: string): void
  /** Milliseconds, in order. */
  readonly stages: Record<string, number>
}

export function stageClock(): StageClock {
  const stages: Record<string, number> = {}
  let before = performance.now()
  return {
    stages,
    mark(stage) {
      const now = performance.now()
      stages[stage] = Math.round(now - before)
      before = now
    },
  }
}
