/** Lets calls pass one at a time, in the order in which they were asked for. */

export class Turns {
  #last: Promise<void> = Promise.resolve()

  /**
   * Runs `call` when all earlier ones have ended.
   *
   * @throws `signal.reason`, at once, when it aborts before the turn has come; `call` is then not run.
   */
  async take<T>(call: () => Promise<T>, signal: AbortSignal): Promise<T> {
    const earlier = this.#last
    let end = (): void => undefined
    const mine = new Promise<void>((resolve) => {
      end = resolve
    })
    // Whoever gives up while waiting must not let the next one overtake those before.
    this.#last = earlier.then(() => mine)
    try {
      await comes(earlier, signal)
      return await call()
    } finally {
      end()
    }
  }
}

function comes(turn: Promise<void>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason)
    const onAbort = () => reject(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    void turn.then(() => {
      signal.removeEventListener('abort', onAbort)
      resolve()
    })
  })
}
