#!/usr/bin/env node
/** From a fresh checkout to a running sandbox: sets this host up, then shows that it works. */
import { setUp } from './setup.mjs'

const failed = await setUp()
if (failed.length > 0) {
  console.error(`set-up is not complete: ${failed.join(', ')}`)
  process.exit(1)
}
