/** Bounds a wait in time, with an error of the caller's choice. */

/** The wait itself goes on when the limit strikes: whoever started it ends it. A late failure of it is not reported. */
export async function within<T>(wait: Promise<T>, timeoutMs: number, onTimeout: () => Error): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const limit = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(onTimeout()), timeoutMs)
  })
  try {
    return await Promise.race([wait, limit])
  } finally {
    clearTimeout(timer)
  }
}
