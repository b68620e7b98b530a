import assert from 'node:assert/strict'
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { entry, file, folder, gzip, hardlink, symlink, tar } from '../../image/testing/tar-builder.js'
import { hasCode } from '../../testing/errors.js'
import { seededRandom } from '../../testing/random.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { ARCHIVE_LIMITS, extractPrograms } from './release-archive.js'
import { sha256Of } from './testing/release.js'

const wanted = { firecracker: 'r/firecracker-v1', jailer: 'r/jailer-v1' }

/** All that is in the folder afterwards, too. */
async function extract(t: TestScope, archive: Buffer, limits = ARCHIVE_LIMITS) {
  const root = await temporaryFolder(t)
  const directory = path.join(root, 'out')
  await mkdir(directory)
  await writeFile(path.join(root, 'archive'), archive)
  const names = async () => ({ root: (await readdir(root)).sort(), directory: (await readdir(directory)).sort() })
  const extracting = extractPrograms({ archive: path.join(root, 'archive'), wanted, directory, limits })
  return { directory, names, extracting }
}

describe('a release archive', () => {
  it('gives its programs, whatever their sizes and places, and nothing else', async (t) => {
    const random = seededRandom(3)
    for (const sizes of [
      [1, 1],
      [512, 511],
      [70_000, 3],
      [16_384 - 512, 200_001],
    ] as const) {
      const [firecracker, jailer] = [random.bytes(sizes[0]), random.bytes(sizes[1])]
      const programs = [file('./r/jailer-v1', jailer), file('r/firecracker-v1', firecracker, { mode: 0o4777 })]
      const around = [folder('r/'), file('r/firecracker-v1.debug', random.bytes(40_000)), file('r/LICENSE', 'words')]
      const { directory, names, extracting } = await extract(t, gzip(tar(...around, ...programs, ...around)))
      const { programs: found } = await extracting
      assert.deepEqual(found.firecracker, { sha256: sha256Of(firecracker), sizeBytes: firecracker.length })
      assert.deepEqual(found.jailer, { sha256: sha256Of(jailer), sizeBytes: jailer.length })
      assert.deepEqual(await readFile(path.join(directory, 'firecracker')), firecracker)
      assert.deepEqual(await readFile(path.join(directory, 'jailer')), jailer)
      assert.equal((await stat(path.join(directory, 'firecracker'))).mode & 0o7777, 0o755)
      assert.deepEqual((await names()).directory, ['firecracker', 'jailer'])
    }
  })

  it('cannot write anywhere else, whatever its names are', async (t) => {
    const hostile = [
      ...['../escaped', '/tmp/bandsox-escaped', 'r/../../escaped', '..', 'firecracker', 'jailer', 'r/firecracker-v1/x'],
      ...['r//firecracker-v1', '../r/firecracker-v1', '/r/firecracker-v1', 'R/firecracker-v1'],
    ]
    const entries = [
      ...hostile.map((name) => file(name, 'hostile')),
      symlink('r', '/etc'),
      symlink('out', '/'),
      hardlink('link', '/etc/passwd'),
      entry({ path: 'x', pax: [['path', '../escaped']], content: 'hostile' }),
    ]
    const { names, extracting } = await extract(t, gzip(tar(...entries)))
    assert.deepEqual((await extracting).programs, {})
    assert.deepEqual(await names(), { root: ['archive', 'out'], directory: [] })
  })

  it('says what else it has', async (t) => {
    const { extracting } = await extract(t, gzip(tar(file('r2/firecracker-v2', 'x'), file('r2/other', 'x'))))
    assert.deepEqual(await extracting, { programs: {}, others: ['"r2/firecracker-v2"'] })
  })

  const program = file(wanted.firecracker, 'program')
  for (const [what, archive, message] of [
    ['a program that is a link', gzip(tar(symlink(wanted.firecracker, '/bin/sh'))), /is no plain file/],
    ['a program that is a hard link', gzip(tar(hardlink(wanted.jailer, 'r/x'))), /is no plain file/],
    ['a program that is a folder', gzip(tar(folder(wanted.firecracker))), /is no plain file/],
    ['an empty program', gzip(tar(file(wanted.firecracker, ''))), /is empty/],
    ['a program twice', gzip(tar(program, program)), /is in it twice/],
    [
      'a program that is too large',
      gzip(tar(file(wanted.jailer, Buffer.alloc(100_001)))),
      /has 100001 bytes, over 100000/,
    ],
    [
      'a program that says it is huge',
      gzip(tar(file(wanted.jailer, 'x', { size: 8_000_000_000 }))),
      /has 8000000000 bytes, over 100000/,
    ],
    ['too many entries', gzip(tar(...Array.from({ length: 51 }, (_, at) => file(`f${at}`)))), /more than 50 entries/],
    ['much that is packed small', gzip(tar(file('zeros', Buffer.alloc(1_000_000)))), /more than 500000 bytes/],
    ['an end too early', gzip(tar(program).subarray(0, 600)), /cut short/],
    ['a stream that is cut', gzip(tar(program)).subarray(0, 60), /unexpected end of file/],
    ['something else', Buffer.from('<html>'), /incorrect header check/],
    ['nothing', Buffer.alloc(0), /unexpected end|cut short|has no/],
    ['no tar', gzip(Buffer.alloc(1024, 'x')), /at byte 0/],
  ] as const) {
    it(`with ${what} is refused`, async (t) => {
      const limits = { maxEntries: 50, maxProgramBytes: 100_000, maxUnpackedBytes: 500_000 }
      const { extracting } = await extract(t, archive, limits)
      await assert.rejects(extracting, hasCode('artifact-damaged', message))
    })
  }
})
