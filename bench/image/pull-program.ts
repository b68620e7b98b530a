/** A program as a user would write one, which image.ts times from outside: opens a storage folder, pulls an image. */
import { openBandSox } from 'bandsox'

const [storage = '', reference = ''] = process.argv.slice(2)

await using bandsox = await openBandSox({ storage })
await bandsox.images.pull(reference)
