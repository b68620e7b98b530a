import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { recordFile } from '../artifact/recorded-file.js'
import { resolveImage } from './catalog.js'

let images: string
before(async () => {
  images = await mkdtemp(join(tmpdir(), 'bandsox-images-'))
})
after(() => rm(images, { recursive: true }))

test('a reference to anything but the built-in image is not found, with the name of the one there is', async () => {
  for (const reference of ['python:3-alpine', '', '../base', 'bandsox/base:1']) {
    await assert.rejects(resolveImage(images, reference), {
      code: 'image-not-found',
      message: `there is no image ${JSON.stringify(reference)}: the built-in bandsox/base is the only one`,
    })
  }
})

test('the built-in image is not found before it is made', async () => {
  await assert.rejects(resolveImage(images, 'base'), { code: 'image-not-found', hint: /npm run setup/ })
})

test('the built-in image has two names, and a damaged one says which file', async () => {
  const folder = join(images, 'bandsox-base')
  await mkdir(folder)
  await writeFile(join(folder, 'rootfs.squashfs'), 'hsqs')
  const config = { env: ['A=1'], user: '', workingDir: '/', entrypoint: [], cmd: [], stopSignal: '', labels: {} }
  const rootfs = await recordFile(folder, 'rootfs.squashfs')
  const digest = `sha256:${'0'.repeat(64)}`
  const manifest = { version: 1, name: 'base', reference: 'bandsox/base', digest, config, rootfs }
  await writeFile(join(folder, 'image.json'), JSON.stringify(manifest))
  const image = await resolveImage(images, 'base')
  assert.deepEqual(await resolveImage(images, 'bandsox/base'), image)
  assert.equal(image.rootfs.path, join(folder, 'rootfs.squashfs'))
  assert.deepEqual(image.config, config)
  await rm(image.rootfs.path)
  await assert.rejects(resolveImage(images, 'base'), {
    code: 'artifact-damaged',
    message: /rootfs\.squashfs is missing/,
  })
})
