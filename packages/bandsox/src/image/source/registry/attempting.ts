/** Says in an error from below what was being attempted; code, hint and cause stay. */
import { BandSoxError } from '@bandsox/sdk'

/** @param attempt Such as "cannot get the manifest of docker.io/library/alpine:latest". */
export async function attempting<T>(attempt: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof BandSoxError)) throw error
    throw new BandSoxError(error.code, `${attempt}: ${error.message}`, {
      cause: error,
      ...(error.hint !== undefined && { hint: error.hint }),
    })
  }
}
