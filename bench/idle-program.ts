/** A program as a user would write one, that holds one sandbox which does nothing; idle.ts looks at its memory. */
import { once } from 'node:events'
import { openBandSox } from 'bandsox'
import type { Word } from './idle.js'

const say = (word: Word) => process.send?.(word)
const ended = once(process, 'disconnect')

await using bandsox = await openBandSox()
say({ kind: 'open' })
await once(process, 'message')
await using sandbox = await bandsox.create('bandsox/base')
await sandbox.exec(['true']).wait()
say({ kind: 'idle', directory: (await sandbox.info()).directory })
await ended
