#!/usr/bin/env node
/** From a fresh checkout to a sandbox that did something: sets this host up, then shows that it works. */
import { storageFolder } from './lib/paths.mjs'
import { runSteps } from './lib/step.mjs'
import { tour } from './lib/tour.mjs'
import { setUp } from './setup.mjs'

// It shows a boot, and leaves nothing: a template would be made behind its back.
process.env.BANDSOX_TEMPLATES = 'off'

const storage = storageFolder(process.env, process.getuid?.() === 0)
const failed = await setUp()
if (failed.length === 0) failed.push(...(await runSteps(tour(storage), console.log)))
if (failed.length > 0) {
  console.error(`quickstart is not complete: ${failed.join(', ')}`)
  process.exitCode = 1
} else {
  console.log(`\nIt works. Make one that stays, and look at it:
  npx bandsox create bandsox/base --name first
  npx bandsox exec first -- uname -a
  npx bandsox vm list
  npx bandsox vm delete --force first`)
}
