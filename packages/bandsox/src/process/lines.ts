/** Cuts a byte stream into lines, none longer than a bound. */
import type { Readable } from 'node:stream'
import { BandSoxError } from '@bandsox/sdk'

const NEWLINE = 0x0a

/**
 * @param maxBytes Of one line, without its `\n`.
 * @returns Lines without `\n` or `\r\n`; a last one without an end counts.
 * @throws `vmm-control` when a line is longer, and the stream's own errors.
 */
export async function* lines(stream: Readable, maxBytes: number): AsyncGenerator<string> {
  let parts: Buffer[] = []
  let size = 0
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    let start = 0
    for (let end = chunk.indexOf(NEWLINE); end !== -1; end = chunk.indexOf(NEWLINE, start)) {
      const last = chunk.subarray(start, end)
      requireShort(size + last.length, maxBytes)
      yield textOf([...parts, last])
      parts = []
      size = 0
      start = end + 1
    }
    const rest = chunk.subarray(start)
    size += rest.length
    requireShort(size, maxBytes)
    if (rest.length > 0) parts.push(rest)
  }
  if (parts.length > 0) yield textOf(parts)
}

function requireShort(size: number, maxBytes: number): void {
  if (size > maxBytes)
    throw new BandSoxError('vmm-control', `a control socket sent a line of more than ${maxBytes} bytes`)
}

const textOf = (parts: Buffer[]): string => Buffer.concat(parts).toString('utf8').replace(/\r$/, '')
