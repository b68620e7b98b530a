/** A program as a user would write one, that opens a storage and lists what is in it; list.ts starts it. */
import { openBandSox } from 'bandsox'
import type { FreshList } from './list.js'

const [storage = ''] = process.argv.slice(2)

async function timed<T>(work: () => Promise<T>): Promise<{ ms: number; result: T }> {
  const began = performance.now()
  const result = await work()
  return { ms: performance.now() - began, result }
}

const { ms: open, result: bandsox } = await timed(() => openBandSox({ storage }))
const { ms: first } = await timed(() => bandsox.list())
const { ms: second } = await timed(() => bandsox.list())
await bandsox[Symbol.asyncDispose]()
console.log(JSON.stringify({ open, first, second } satisfies FreshList))
