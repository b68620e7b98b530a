/** Runs a check on many random cases: a few thousand in `npm test`, for as long as it was told in a soak. */
import { BandSoxError, type ErrorCode } from '@bandsox/sdk'
import { type Random, seededRandom } from '../../testing/random.js'

const MINUTE_MS = 60_000
const MIB = 1024 * 1024
/** Of this process's own time that a case may take, as a busy host must not fail it; most take a millisecond. */
const CASE_LIMIT_MS = 5_000
/** By which the memory of the process may grow: it is that of one case, and of garbage that is not collected yet. */
const MEMORY_LIMIT_BYTES = 512 * MIB
/** After which an await lets others run: signals, timers. */
const BREATH = 100

export interface FuzzRun {
  /** Cases in `npm test`. */
  cases: number
  /** Of the time of a soak. */
  share: number
}

/**
 * Environment: `BANDSOX_SOAK=1` for a run of `BANDSOX_FUZZ_MINUTES` (60), with another first seed each time;
 * `BANDSOX_FUZZ_SEED` is the first seed, to see a failure again.
 *
 * @returns What was done, in words.
 * @throws What `check` throws, with the seed of the case.
 */
export async function fuzz(
  { cases, share }: FuzzRun,
  check: (random: Random) => void | Promise<void>,
): Promise<string> {
  const isSoak = process.env['BANDSOX_SOAK'] === '1'
  const limitMs = Number(process.env['BANDSOX_FUZZ_MINUTES'] ?? 60) * MINUTE_MS * share
  const first = Number(process.env['BANDSOX_FUZZ_SEED'] ?? (isSoak ? Date.now() % 2 ** 32 : 1))
  const startedAt = performance.now()
  const memoryBefore = process.memoryUsage().rss
  let done = 0
  for (; isSoak ? performance.now() - startedAt < limitMs : done < cases; done++) {
    const seed = first + done
    const before = process.cpuUsage()
    try {
      await check(seededRandom(seed))
    } catch (error) {
      throw new Error(`the case of seed ${seed} fails (BANDSOX_FUZZ_SEED=${seed})`, { cause: error })
    }
    const { user, system } = process.cpuUsage(before)
    const tookMs = (user + system) / 1000
    if (tookMs > CASE_LIMIT_MS) throw new Error(`the case of seed ${seed} takes ${Math.round(tookMs)} ms`)
    if (done % BREATH !== 0) continue
    await new Promise((resolve) => setImmediate(resolve))
    const grown = process.memoryUsage().rss - memoryBefore
    if (grown > MEMORY_LIMIT_BYTES) throw new Error(`memory grew by ${grown / MIB} MiB until the seed ${seed}`)
  }
  return `${done} cases from seed ${first} in ${Math.round((performance.now() - startedAt) / 1000)} s`
}

/** @returns What `read` gives, or the error's code and message. @throws Any other error than one of these codes. */
export async function outcomeOf<T>(codes: readonly ErrorCode[], read: () => T | Promise<T>): Promise<T | string> {
  try {
    return await read()
  } catch (error) {
    if (error instanceof BandSoxError && codes.includes(error.code)) return `${error.code}: ${error.message}`
    throw error
  }
}
