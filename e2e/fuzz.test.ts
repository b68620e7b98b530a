/** The hour of fuzzing: the unit tests run some seconds of the same. Environment: see bandsox/internal/image/testing/fuzz-run.js. */
import { test } from 'node:test'
import { fuzzLayers } from 'bandsox/internal/image/testing/layer-fuzz.js'
import { fuzzManifests } from 'bandsox/internal/image/testing/manifest-fuzz.js'

const skip = process.env['BANDSOX_SOAK'] === '1' ? false : 'a soak runs it, for an hour together: npm run soak'

test('any layers are read without harm', { skip }, async (t) => {
  t.diagnostic(await fuzzLayers({ cases: 0, share: 0.8 }))
})

test('any manifests and archives are read without harm', { skip }, async (t) => {
  t.diagnostic(await fuzzManifests({ cases: 0, share: 0.2 }))
})
