import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { memoryFiles } from '../testing/memory-image.js'
import { folderFiles, readDocumentFile } from './files.js'
import { MAX_DOCUMENT_BYTES } from './source.js'

it('a folder gives sizes and bytes of its files, and of nothing else', async (t) => {
  const folder = await temporaryFolder(t)
  await mkdir(join(folder, 'blobs'))
  await writeFile(join(folder, 'blobs/a'), 'hello')
  execFileSync('mkfifo', [join(folder, 'pipe')])
  const files = folderFiles(folder)
  assert.equal(await files.sizeOf('blobs/a'), 5)
  assert.equal(String(await buffer(files.open('blobs/a', 2))), 'llo')
  for (const path of ['blobs', 'none', 'blobs/a/b', 'pipe']) assert.equal(await files.sizeOf(path), undefined, path)
  await assert.rejects(readDocumentFile(files, 'none'), hasCode('image-invalid', /holds no none/))
})

it('a document has a bound', async () => {
  const files = memoryFiles(
    new Map([
      ['small', Buffer.from('{}')],
      ['large', Buffer.alloc(MAX_DOCUMENT_BYTES + 1)],
    ]),
  )
  assert.equal((await readDocumentFile(files, 'small')).toString(), '{}')
  await assert.rejects(readDocumentFile(files, 'large'), hasCode('image-invalid', /has 4194305 bytes, over 4194304/))
})
