/** The body of a blob as a stream whose errors are ours, and which ends where the blob must end. */
import { type Readable, Transform } from 'node:stream'
import { BandSoxError } from '@bandsox/sdk'
import type { HttpReply } from './reply.js'
import { brokenBody } from './transport-error.js'

/**
 * @param expectedBytes Of the body: a longer one is an error as soon as it shows, a shorter one at its end.
 * @returns A stream that fails with `registry-failed` when the body breaks off, `digest-mismatch` when it is too long, or
 *   `signal.reason`. Destroying it ends the connection.
 */
export function blobStream(reply: HttpReply, what: string, expectedBytes: number, signal: AbortSignal): Readable {
  const { host } = reply.url
  let bytes = 0
  const stream = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      if (bytes <= expectedBytes) return done(null, chunk)
      done(new BandSoxError('digest-mismatch', `${what} is longer than announced: over ${expectedBytes} bytes came`))
    },
    flush(done) {
      if (bytes === expectedBytes) return done()
      done(new BandSoxError('registry-failed', `${host} sent ${bytes} of ${expectedBytes} bytes of ${what}`))
    },
    destroy(error, done) {
      reply.body.destroy()
      done(error)
    },
  })
  reply.body.on('error', (error) => stream.destroy(signal.aborted ? signal.reason : brokenBody(host, bytes, error)))
  reply.body.pipe(stream)
  return stream
}
