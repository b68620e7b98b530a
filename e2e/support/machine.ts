/** The machine below a sandbox, of whichever VMM the tests run on. */
import path from 'node:path'
import { readConfig } from 'bandsox/internal/config.js'
import { openHost } from 'bandsox/internal/sandbox/local-bandsox.js'
import type { Machine } from 'bandsox/internal/vmm/vmm.js'

/** Attaches to it without a word to the sandbox. */
export async function attachTo(directory: string): Promise<Machine & AsyncDisposable> {
  const storage = path.dirname(path.dirname(directory))
  const { vmm, store } = await openHost({ ...readConfig(process.env, { storage }), warn: () => undefined })
  const machine = await vmm.attach(directory)
  return Object.assign(machine, {
    async [Symbol.asyncDispose]() {
      machine.close()
      store.close()
    },
  })
}
