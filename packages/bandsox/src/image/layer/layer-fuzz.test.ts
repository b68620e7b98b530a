import { it } from 'node:test'
import { fuzzLayers } from '../testing/layer-fuzz.js'

it('reads any layers without harm, and the same however they are cut', async (t) => {
  t.diagnostic(await fuzzLayers({ cases: 2_500, share: 0.8 }))
})
