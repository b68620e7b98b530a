import assert from 'node:assert/strict'
import { readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { sampleManifest } from '../../testing/sample-manifest.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { checkDigestFile, digestOf, parseManifest, readManifest, writeManifest } from './manifest.js'

const id = 'snp_aaaaaaaaaa'

describe('a manifest', () => {
  it('comes back as it was written, by its digest', async (t) => {
    const folder = await temporaryFolder(t)
    const digest = await writeManifest(folder, sampleManifest())
    assert.deepEqual(await readManifest(folder, id, digest), sampleManifest())
    await checkDigestFile(folder, id, digest)
    await assert.rejects(writeManifest(folder, sampleManifest()), { code: 'EEXIST' })
  })

  it('is found out by one bit of it, or of its digest, and by its loss', async (t) => {
    const folder = await temporaryFolder(t)
    const digest = await writeManifest(folder, sampleManifest())
    const file = path.join(folder, 'manifest.json')
    const content = await readFile(file)
    for (const position of [0, Math.floor(content.length / 2), content.length - 1]) {
      const changed = Buffer.from(content)
      changed[position] = (changed[position] ?? 0) ^ 1
      await writeFile(file, changed)
      await assert.rejects(readManifest(folder, id, digest), hasCode('snapshot-damaged', /^manifest\.json of snapshot/))
    }
    await writeFile(path.join(folder, 'manifest.sha256'), `${digest.slice(0, -1)}x\n`)
    await assert.rejects(checkDigestFile(folder, id, digest), hasCode('snapshot-damaged', /^manifest\.sha256 of/))
    for (const name of ['manifest.json', 'manifest.sha256']) await rm(path.join(folder, name))
    await assert.rejects(readManifest(folder, id, digest), hasCode('snapshot-damaged', /has lost its manifest\.json/))
    await assert.rejects(checkDigestFile(folder, id, digest), hasCode('snapshot-damaged', /lost its manifest\.sha256/))
  })

  it('that is none of ours, or leads elsewhere, is refused though its digest is right', () => {
    const [first] = sampleManifest().files
    assert.ok(first)
    const cases: Record<string, object> = {
      'of a newer format': { ...sampleManifest(), format: 2 },
      'with more in it': { ...sampleManifest(), more: true },
      'with a layer elsewhere': { ...sampleManifest(), layers: ['../../etc/passwd'] },
      'with a hidden root': { ...sampleManifest(), rootFile: '.ssh' },
      'with a file below another folder': { ...sampleManifest(), files: [{ ...first, name: 'a/b' }] },
      'with an odd digest': { ...sampleManifest(), files: [{ ...first, digest: 'D'.repeat(64) }] },
      'with an escape in its sandbox': { ...sampleManifest(), sandbox: { id: 'sbx_\u001b[2J' } },
      'with an escape in its name': { ...sampleManifest(), sandbox: { id: 'sbx_aaaaaaaaaa', name: 'a\u001b[2J' } },
      'with many files': { ...sampleManifest(), files: Array.from({ length: 129 }, () => first) },
    }
    for (const [what, manifest] of Object.entries(cases))
      assert.throws(() => parseManifest(Buffer.from(JSON.stringify(manifest))), hasCode('snapshot-damaged'), what)
    for (const content of ['', '{', 'null', '[]', ' '.repeat(5 * 1024 * 1024)])
      assert.throws(() => parseManifest(Buffer.from(content)), hasCode('snapshot-damaged'))
    assert.equal(digestOf('x').length, 64)
  })
})
