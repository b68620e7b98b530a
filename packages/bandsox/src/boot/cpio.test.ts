import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type CpioEntry, writeCpio } from './cpio.js'

const entries: CpioEntry[] = [
  { kind: 'directory', path: 'dev', mode: 0o755 },
  { kind: 'character-device', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
  { kind: 'file', path: 'init', mode: 0o755, content: Buffer.from('hello') },
]

/** Reads an archive as the kernel does: a header of 13 hexadecimal numbers, name and content padded to 4 bytes. */
function readCpio(archive: Buffer) {
  const found: { path: string; mode: string; device: string; content: string }[] = []
  let at = 0
  for (;;) {
    assert.equal(archive.toString('latin1', at, at + 6), '070701')
    const field = (index: number) =>
      Number.parseInt(archive.toString('latin1', at + 6 + index * 8, at + 14 + index * 8), 16)
    const nameBytes = field(11)
    const path = archive.toString('utf8', at + 110, at + 110 + nameBytes - 1)
    const contentAt = (at + 110 + nameBytes + 3) & ~3
    if (path === 'TRAILER!!!') return { found, end: contentAt }
    const content = archive.toString('utf8', contentAt, contentAt + field(6))
    found.push({ path, mode: field(1).toString(8), device: `${field(9)}:${field(10)}`, content })
    at = (contentAt + field(6) + 3) & ~3
  }
}

test('an archive holds folders, device nodes and files with their modes', () => {
  const archive = Buffer.concat([...writeCpio(entries)])
  const { found, end } = readCpio(archive)
  assert.deepEqual(found, [
    { path: 'dev', mode: '40755', device: '0:0', content: '' },
    { path: 'dev/console', mode: '20600', device: '5:1', content: '' },
    { path: 'init', mode: '100755', device: '0:0', content: 'hello' },
  ])
  assert.equal(end, archive.length)
})

test('equal entries give equal bytes', () => {
  assert.deepEqual(Buffer.concat([...writeCpio(entries)]), Buffer.concat([...writeCpio(entries)]))
})

test('every piece begins at a multiple of four bytes, whatever the lengths of names and contents', () => {
  for (const length of [0, 1, 2, 3, 4, 5]) {
    const path = 'x'.repeat(length + 1)
    const archive = Buffer.concat([
      ...writeCpio([{ kind: 'file', path, mode: 0o644, content: Buffer.alloc(length, 'y') }]),
    ])
    assert.deepEqual(readCpio(archive).found, [{ path, mode: '100644', device: '0:0', content: 'y'.repeat(length) }])
  }
})
