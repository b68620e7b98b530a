import assert from 'node:assert/strict'
import { it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { mediaTypes } from '../manifest.js'
import { digestOf } from '../testing/image-corpus.js'
import { described, json, layoutFiles, memoryFiles, memoryImage } from '../testing/memory-image.js'
import { file, tar } from '../testing/tar-builder.js'
import { isLayout, openLayout } from './layout.js'

const layer = tar(file('a', '1'))
const image = memoryImage([layer])
const manifest = described(image.manifest, mediaTypes.ociManifest)
const named = (name: string) => ({ ...manifest, annotations: { 'org.opencontainers.image.ref.name': name } })

/** A layout whose index names these manifests. */
const withIndex = (...manifests: unknown[]) =>
  memoryFiles(new Map([...layoutFiles(image), ['index.json', json({ schemaVersion: 2, manifests })]]))

it('a layout of one image gives it, with a name or without', async () => {
  for (const [name, tag] of [
    [undefined, undefined],
    ['app', undefined],
    ['app', 'app'],
    ['example.org/app:1', '1'],
  ]) {
    const source = await openLayout(memoryFiles(layoutFiles(image, name)), tag)
    assert.deepEqual(source.names, name === undefined ? [] : [name])
    assert.deepEqual((await source.root()).bytes, image.manifest)
    const { stream, startsAt } = await source.openBlob(described(layer, 'x'), 5)
    const parts: Buffer[] = []
    for await (const part of stream) parts.push(part as Buffer)
    assert.deepEqual([startsAt, Buffer.concat(parts)], [5, layer.subarray(5)])
  }
})

it('a layout of several images gives the one that is named, and says which there are', async () => {
  const files = withIndex(named('one'), { ...named('two'), digest: digestOf(Buffer.from('2')) })
  assert.equal((await (await openLayout(files, 'one')).root()).digest, manifest.digest)
  await assert.rejects(openLayout(files, undefined), hasCode('image-not-found', /holds 2 images: one, two/))
  await assert.rejects(openLayout(files, 'three'), hasCode('image-not-found', /no image "three": one, two/))
})

it('several manifests without names are one image for several platforms', async () => {
  const source = await openLayout(withIndex(manifest, manifest), undefined)
  assert.match((await source.root()).bytes.toString(), /manifests/)
  assert.deepEqual((await source.manifest(manifest)).bytes, image.manifest)
})

it('a layout that lies is refused', async () => {
  await assert.rejects(openLayout(withIndex(), undefined), hasCode('image-invalid', /holds no image/))
  await assert.rejects(openLayout(memoryFiles(new Map()), undefined), hasCode('image-invalid', /holds no index\.json/))
  assert.equal(await isLayout(memoryFiles(new Map())), false)
  const noIndex = memoryFiles(new Map([['index.json', image.manifest]]))
  await assert.rejects(openLayout(noIndex, undefined), hasCode('image-invalid', /index\.json in .* is no index/))
  const files = layoutFiles(image)
  files.set(`blobs/sha256/${manifest.digest.slice(7)}`, Buffer.from('{}'))
  const changed = await openLayout(memoryFiles(files), undefined)
  await assert.rejects(changed.root(), hasCode('digest-mismatch', /has the digest sha256:44136f/))
  await assert.rejects(
    (await openLayout(withIndex(manifest), undefined)).openBlob(described(Buffer.from('none'), 'x'), 0),
    hasCode('image-invalid', /holds no blobs\/sha256\//),
  )
})

it('a digest that is a path leads nowhere', async () => {
  const escaping = { ...manifest, digest: 'sha256:../../../../etc/passwd' }
  await assert.rejects(openLayout(withIndex(escaping), undefined), hasCode('image-invalid', /digest/))
})
