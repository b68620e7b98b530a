import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmod, mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { openDescriptors } from '../testing/descriptors.js'
import { hasCode } from '../testing/errors.js'
import { runModule } from '../testing/module-process.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { HostFileSink, openHostFile } from './host-file.js'

const FILE = { sizeBytes: 3, mode: 0o644 }

async function download(sink: HostFileSink, mode = 0o644): Promise<void> {
  await sink.begin({ sizeBytes: 6, mode })
  await sink.write([Buffer.from('abc'), Buffer.from('d')])
  await sink.write([Buffer.from('ef')])
  await sink.commit()
  await sink.discard() // harmless, and always done
}

describe('a downloaded file', () => {
  it('appears whole under its name, and is nothing before', async (t) => {
    const folder = await temporaryFolder(t)
    const target = path.join(folder, 'made', 'here', 'f')
    const sink = new HostFileSink(target, '/guest/f')
    await sink.begin({ sizeBytes: 3, mode: 0o644 })
    await sink.write([Buffer.from('abc')])
    await assert.rejects(stat(target), { code: 'ENOENT' })
    await sink.commit()
    assert.equal(await readFile(target, 'utf8'), 'abc')
    assert.equal(sink.target, target)
    assert.deepEqual(await readdir(path.dirname(target)), ['f'])
  })

  it('replaces another in one step', async (t) => {
    const folder = await temporaryFolder(t)
    const target = path.join(folder, 'f')
    await writeFile(target, 'old')
    const sink = new HostFileSink(target, '/f')
    await sink.begin(FILE)
    await sink.write([Buffer.from('new')])
    assert.equal(await readFile(target, 'utf8'), 'old')
    await sink.commit()
    assert.equal(await readFile(target, 'utf8'), 'new')
  })

  it('that is discarded leaves nothing, and what was there before', async (t) => {
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, 'f'), 'old')
    const before = await openDescriptors()
    const sink = new HostFileSink(path.join(folder, 'f'), '/f')
    await sink.discard() // not begun
    await sink.begin(FILE)
    await sink.write([Buffer.from('ne')])
    await sink.discard()
    await sink.discard()
    assert.deepEqual(await readdir(folder), ['f'])
    assert.equal(await readFile(path.join(folder, 'f'), 'utf8'), 'old')
    assert.deepEqual(await openDescriptors(), before)
    await assert.rejects(sink.write([Buffer.from('x')]), hasCode('internal'))
  })

  it("goes into a folder under the guest file's last name only", async (t) => {
    const folder = await temporaryFolder(t)
    const sink = new HostFileSink(folder, '/etc/../etc/passwd')
    await download(sink)
    assert.equal(sink.target, path.join(folder, 'passwd'))
    for (const odd of ['/..', '/a/..', '/', '/.']) {
      const inner = path.join(folder, 'inner')
      await mkdir(inner, { recursive: true })
      const escaping = new HostFileSink(inner, odd)
      await assert.rejects(download(escaping), (error) => error instanceof Error, odd)
      await escaping.discard()
      assert.deepEqual(await readdir(inner), [], odd)
      assert.deepEqual((await readdir(folder)).sort(), ['inner', 'passwd'], odd)
    }
  })

  it('has the permissions of the guest file, never its set-id bits', async (t) => {
    const folder = await temporaryFolder(t)
    for (const [mode, expected] of [
      [0o4755, 0o755],
      [0o2750, 0o750],
      [0o1600, 0o600],
      [0o400, 0o400],
    ] as const) {
      const target = path.join(folder, mode.toString(8))
      await download(new HostFileSink(target, '/f'), mode)
      assert.equal((await stat(target)).mode & 0o7777, expected & ~process.umask())
    }
  })

  it('replaces a link rather than what it points to', async (t) => {
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, 'elsewhere'), 'untouched')
    await symlink('elsewhere', path.join(folder, 'link'))
    await download(new HostFileSink(path.join(folder, 'link'), '/f'))
    assert.equal(await readFile(path.join(folder, 'elsewhere'), 'utf8'), 'untouched')
    assert.equal(await readFile(path.join(folder, 'link'), 'utf8'), 'abcdef')
  })

  it('that does not fit is refused before its first byte', async (t) => {
    const folder = await temporaryFolder(t)
    const sink = new HostFileSink(path.join(folder, 'f'), '/f')
    await assert.rejects(
      sink.begin({ sizeBytes: 2 ** 52, mode: 0o644 }),
      hasCode('no-space', /4503599627370496 bytes are needed/),
    )
    assert.deepEqual(await readdir(folder), [])
  })

  it('that cannot be placed says so in an error of ours', async (t) => {
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, 'file'), '')
    const below = new HostFileSink(path.join(folder, 'file', 'f'), '/f')
    await assert.rejects(below.begin(FILE), hasCode('file-error', /on the host/))
  })

  it('that the disk took only a part of is never taken for whole', async (t) => {
    // A limit on the size of files is met like a full disk: first a short write without an error.
    const folder = await temporaryFolder(t)
    const code = `
      const { HostFileSink } = await import(url('./host-file.js'))
      const sink = new HostFileSink(args[0] + '/f', '/f')
      await sink.begin({ sizeBytes: 100_000, mode: 0o644 })
      try {
        await sink.write([Buffer.alloc(100_000)])
        await sink.commit()
        console.log('committed')
      } catch (error) {
        console.log(error.code)
      }
      await sink.discard()`
    const limited = `import { execFileSync } from 'node:child_process'
      const script = ${JSON.stringify(`const args = [process.argv[1]]; const url = (file) => new URL(file, '${import.meta.url}').href;${code}`)}
      const shell = 'trap "" XFSZ; ulimit -f 20; exec "$@"'
      process.stdout.write(execFileSync('/bin/sh', ['-c', shell, 'sh', process.execPath, '--input-type=module', '-e', script, '--', args[0]]))`
    assert.match(await runModule(t, import.meta.url, limited, [folder]).done, /^(no-space|file-error)\n$/)
    assert.deepEqual(await readdir(folder), [])
  })
})

describe('a file to upload', () => {
  it('is opened with its size and permissions', async (t) => {
    const file = path.join(await temporaryFolder(t), 'f')
    await writeFile(file, 'abc')
    await chmod(file, 0o640)
    const { handle, sizeBytes, mode } = await openHostFile(file)
    t.after(() => handle.close())
    assert.deepEqual([sizeBytes, mode], [3, 0o640])
  })

  it('is a regular file: nothing else is read, and a FIFO does not hang', async (t) => {
    const folder = await temporaryFolder(t)
    execFileSync('mkfifo', [path.join(folder, 'fifo')])
    const before = await openDescriptors()
    await assert.rejects(
      openHostFile(path.join(folder, 'no')),
      hasCode('file-not-found', /cannot read .*no on the host/),
    )
    await assert.rejects(openHostFile(folder), hasCode('file-error', /it is a folder/))
    await assert.rejects(openHostFile(path.join(folder, 'fifo')), hasCode('file-error', /not a regular file/))
    await assert.rejects(openHostFile('/dev/null'), hasCode('file-error', /not a regular file/))
    assert.deepEqual(await openDescriptors(), before)
  })
})
