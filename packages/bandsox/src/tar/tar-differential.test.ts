/** The tars that are right, read by another's reader as well: Python's tarfile. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { it } from 'node:test'
import { imageCases, isGood } from '../image/testing/image-corpus.js'
import type { TarEntry } from './tar-entry.js'
import { TarReader } from './tar-reader.js'

const script = `
import base64, io, json, sys, tarfile
kinds = {b'0': 'file', b'\\0': 'file', b'7': 'file', b'S': 'file', b'1': 'hardlink', b'2': 'symlink', b'3': 'character-device',
  b'4': 'block-device', b'5': 'directory', b'6': 'fifo'}
latin = lambda text: text.encode('utf-8', 'surrogateescape').decode('latin-1')
for line in sys.stdin:
    found = []
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(line)), errors='surrogateescape', encoding='utf-8') as archive:
        for each in archive:
            content = archive.extractfile(each).read() if each.isreg() or each.sparse else b''
            found.append([latin(each.name.rstrip('/')), kinds[each.type], each.mode & 0o7777, each.uid, each.gid,
              min(max(int(each.mtime), 0), 2 ** 32 - 1),
              latin(each.linkname), content.decode('latin-1')])
    print(json.dumps(found))
`

/** What the two readers are known to differ in, and why ours is right to. */
const differing = new Map([
  ['no empty blocks at its end', 'python takes nothing but whole records of 10 KiB for an end'],
  ['a layer of no bytes', 'python takes it for no tar'],
  ['a layer of an empty gzip', 'python takes it for no tar'],
  ['PAX records that take nothing back', 'python takes an empty path for one'],
  ['a PAX sparse name of a file that is not sparse', 'python takes it'],
  ['a sparse format that is not known, as the file that it is', 'python takes its name'],
  ['the label of a tape', 'python gives it out as a file'],
  ['a global header', 'python heeds it, and container engines do not'],
  ['a GNU name over a PAX path, as Go has it', 'python takes the PAX path'],
  ['bytes of GNU in place of a prefix', 'python takes them for a prefix'],
  ['a size for a folder and for links, with no bytes behind', 'python passes over bytes behind a hard link'],
])

const cases = imageCases.filter((each) => isGood(each) && !differing.has(each.name))
const tars = cases.flatMap(({ name, layers, unpacked = layers }) => unpacked.map((tar) => ({ name, tar })))
const hasPython = spawnSync('python3', ['-c', 'import tarfile']).status === 0

it(`reads ${tars.length} tars as Python does`, { skip: hasPython ? false : 'python3 is not installed' }, () => {
  const input = tars.map(({ tar }) => `${tar.toString('base64')}\n`).join('')
  const { stdout, stderr, status } = spawnSync('python3', ['-c', script], {
    input,
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  assert.equal(status, 0, `${tars[stdout.split('\n').length - 1]?.name}: ${stderr}`)
  const lines = stdout.trimEnd().split('\n')
  for (const [index, { name, tar }] of tars.entries()) {
    assert.deepEqual({ [name]: read(tar) }, { [name]: JSON.parse(lines[index] ?? '') })
  }
})

function read(tar: Buffer): unknown[] {
  const found: TarEntry[] = []
  const reader = new TarReader((entry) => found.push(entry))
  reader.write(tar)
  reader.end()
  return found.map(
    ({ path, kind, mode, uid, gid, mtime, target, content: { position, sizeBytes, storedBytes, extents } }) => {
      const content = Buffer.alloc(sizeBytes)
      let at = position
      for (const { offset, length } of extents ?? [{ offset: 0, length: storedBytes }]) {
        tar.copy(content, offset, at, at + length)
        at += length
      }
      return [path.replace(/\/+$/, ''), kind, mode, uid, gid, mtime, target, content.toString('latin1')]
    },
  )
}
