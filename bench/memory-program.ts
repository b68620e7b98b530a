/** A program as a user would write one, whose memory memory.ts watches: opens a sandbox, uploads a file, downloads it. */
import { openBandSox } from 'bandsox'
import type { Step } from './memory.js'

const [id = '', file = ''] = process.argv.slice(2)
const GUEST_FILE = '/bench-file'

const bandsox = await openBandSox()
const sandbox = await bandsox.get(id)
await sandbox.exec(['true']).wait()
// V8 lets some 64 MiB of spent socket buffers gather before it collects them. That is there once, whatever is transferred later.
await sandbox.files.write('/bench-warm-up', warmUp())
await sandbox.files.download('/bench-warm-up', `${file}.warm-up`)

async function* warmUp(): AsyncGenerator<Uint8Array> {
  const block = Buffer.alloc(1024 ** 2)
  for (let mib = 0; mib < 128; mib++) yield block
}

const steps: Record<Step, () => Promise<unknown>> = {
  upload: () => sandbox.files.upload(file, GUEST_FILE),
  download: () => sandbox.files.download(GUEST_FILE, `${file}.back`),
}

process.on('message', (step: Step) => {
  steps[step]().then(
    () => process.send?.('done'),
    (error: unknown) => {
      console.error(error)
      process.exit(1)
    },
  )
})
process.send?.('ready')
