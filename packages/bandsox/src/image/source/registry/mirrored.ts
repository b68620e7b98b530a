/** Asks mirrors before the registry that they mirror: what one does not deliver comes from the next. */
import { BandSoxError } from '@bandsox/sdk'
import type { Descriptor } from '../source.js'
import type { RegistrySource } from './registry-source.js'

export interface NamedSource {
  name: string
  source: RegistrySource
}

/**
 * @param sources In their order. The last is the registry itself, whose errors are thrown; those of the others are told to
 *   `debug`. One that fails, other than by not having something, is not asked again: its time limits are paid once.
 */
export function mirrored(sources: readonly NamedSource[], debug: (message: string) => void): RegistrySource {
  const registry = sources.at(-1)
  if (registry === undefined) throw new BandSoxError('internal', 'cannot open an image: no server was given')
  const passedOver = new Set<NamedSource>()
  /** By digest of a blob, who has sent any of its bytes. */
  const senders = new Map<string, Set<NamedSource>>()
  const passOver = (mirror: NamedSource, reason: string) => {
    if (passedOver.has(mirror)) return
    passedOver.add(mirror)
    debug(`not asking the mirror ${mirror.name} any more: ${reason}`)
  }

  const ask = async <T>(question: (asked: NamedSource) => Promise<T>, signal: AbortSignal | undefined): Promise<T> => {
    for (const mirror of sources.slice(0, -1)) {
      if (passedOver.has(mirror)) continue
      try {
        return await question(mirror)
      } catch (error) {
        signal?.throwIfAborted()
        if (!(error instanceof BandSoxError) || error.code === 'cancelled') throw error
        if (error.code === 'image-not-found') debug(`the mirror ${mirror.name} does not have it: ${error.message}`)
        else passOver(mirror, error.message)
      }
    }
    return question(registry)
  }

  const reject = ({ digest }: Descriptor): boolean => {
    const mirrors = [...(senders.get(digest) ?? [])].filter((sender) => sender !== registry)
    for (const mirror of mirrors) passOver(mirror, `what came as ${digest} has another digest`)
    senders.delete(digest)
    return mirrors.length > 0
  }

  return {
    root: (signal) => ask(({ source }) => source.root(signal), signal),
    manifest: (descriptor, signal) => ask(({ source }) => source.manifest(descriptor, signal), signal),
    digest: (signal) => ask(({ source }) => source.digest(signal), signal),
    openBlob: (descriptor, offset, signal) =>
      ask(async (asked) => {
        const blob = await asked.source.openBlob(descriptor, offset, signal)
        const others = blob.startsAt === 0 ? undefined : senders.get(descriptor.digest)
        senders.set(descriptor.digest, new Set(others).add(asked))
        // The reader meets the error too, and opens the blob again: the next server has it whole.
        if (asked !== registry)
          blob.stream.once('error', (error) => {
            if (error instanceof BandSoxError && error.code !== 'cancelled') passOver(asked, error.message)
          })
        return blob
      }, signal),
    ...(sources.length > 1 && { reject }),
    async close() {
      await Promise.all(sources.map(({ source }) => source.close()))
    },
  }
}
