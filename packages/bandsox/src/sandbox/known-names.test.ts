import assert from 'node:assert/strict'
import { readdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { ImageStore } from '../image/image-store.js'
import { SandboxStore } from '../store/sandbox-store.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { knownNames } from './known-names.js'
import { storageFolders } from './storage-folders.js'

const IMAGE = `sha256:${'a'.repeat(64)}`

async function storageWith(
  t: TestScope,
  references: readonly string[],
): Promise<{ storage: string; configFile: string }> {
  const folder = await temporaryFolder(t)
  const storage = path.join(folder, 'storage')
  const images = new ImageStore(storageFolders(storage).images)
  await images.open()
  for (const reference of references)
    await images.writeReference({ version: 1, reference, image: IMAGE, origin: 'registry', root: IMAGE })
  return { storage, configFile: path.join(folder, 'config.json') }
}

test('sandboxes are known by name and by id, the newest first', async (t) => {
  const { storage, configFile } = await storageWith(t, [])
  const store = await SandboxStore.open(storage)
  await store.insert(sampleRecord({ id: 'sbx_aaaaaaaaaa', name: 'web', createdAt: '2026-01-02T00:00:00.000Z' }))
  await store.insert(sampleRecord({ id: 'sbx_bbbbbbbbbb' }))
  store.close()
  assert.deepEqual(await knownNames({ storage, configFile }).sandboxes(), [
    { value: 'web', description: 'stopped, bandsox/base' },
    { value: 'sbx_aaaaaaaaaa', description: 'web, stopped, bandsox/base' },
    { value: 'sbx_bbbbbbbbbb', description: 'stopped, bandsox/base' },
  ])
})

test('images are known by the shortest reference that means them', async (t) => {
  const expected: Record<string, string> = {
    'docker.io/library/alpine:3.20': 'alpine:3.20',
    'docker.io/owner/tool:1': 'owner/tool:1',
    'docker.io/library/podman:latest': 'library/podman:latest', // podman: is a kind of source
    'docker.io/library/localhost/x:1': 'library/localhost/x:1', // localhost/ would be a registry
    'ghcr.io/owner/tool:1': 'ghcr.io/owner/tool:1',
    'localhost:5000/mine:dev': 'localhost:5000/mine:dev',
    'bandsox/base': 'bandsox/base',
    'oci:/images/alpine:3.20': 'oci:/images/alpine:3.20',
  }
  const { storage, configFile } = await storageWith(t, Object.keys(expected))
  const found = await knownNames({ storage, configFile }).images()
  assert.deepEqual(Object.fromEntries(found.map(({ value, inFull }) => [inFull ?? value, value])), expected)

  await writeFile(configFile, JSON.stringify({ shortNameRegistry: 'ghcr.io' }))
  const elsewhere = (await knownNames({ storage, configFile }).images()).map(({ value }) => value)
  assert.ok(
    elsewhere.includes('owner/tool:1') && elsewhere.includes('docker.io/library/alpine:3.20'),
    elsewhere.join(' '),
  )
  assert.equal(elsewhere.filter((value) => value === 'owner/tool:1').length, 1)
})

test('nothing is made to look for names', async (t) => {
  const folder = await temporaryFolder(t)
  const known = knownNames({ storage: path.join(folder, 'storage'), configFile: path.join(folder, 'config.json') })
  assert.deepEqual(await known.sandboxes(), [])
  await assert.rejects(known.images(), { code: 'ENOENT' })
  assert.deepEqual(await readdir(folder), [])
})
