import { it } from 'node:test'
import { fuzzManifests } from './testing/manifest-fuzz.js'

it('reads any manifest, configuration, layout and archive without harm', async (t) => {
  t.diagnostic(await fuzzManifests({ cases: 1_500, share: 0.2 }))
})
