/** Files in and out of a real guest: whole, checked, replaced in one step, and every refusal by its name. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { BandSoxError, type FileEntry, openBandSox, type Sandbox } from 'bandsox'
import { randomBytes } from './support/random.js'
import { type TestStorage, temporaryStorage } from './support/storage.js'

let storage: TestStorage
let sandbox: Sandbox
let local: string

before(async () => {
  storage = await temporaryStorage()
  local = await mkdtemp(path.join(tmpdir(), 'bandsox-files-'))
  const bandsox = await openBandSox({ storage: storage.folder })
  sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
})

after(async () => {
  await sandbox?.[Symbol.asyncDispose]()
  await storage?.assertNothingLeft()
  await storage?.[Symbol.asyncDispose]()
  await rm(local, { recursive: true })
})

const inGuest = async (command: string): Promise<string> => {
  const { stdout, stderr, exitCode } = await sandbox.exec(command).collect()
  assert.equal(exitCode, 0, stderr)
  return stdout
}

const rejectsWith = (code: BandSoxError['code'], work: Promise<unknown>): Promise<void> =>
  assert.rejects(work, (error) => {
    assert.ok(error instanceof BandSoxError, String(error))
    assert.equal(error.code, code, error.message)
    return true
  })

test('files of every awkward size arrive whole both ways', async () => {
  for (const [index, size] of [0, 1, 65_535, 65_536, 65_537, 1_048_576, 5_000_003].entries()) {
    const content = randomBytes(size, 10 + index)
    const file = path.join(local, `size-${size}`)
    await writeFile(file, content)
    const up = await sandbox.files.upload(file, `/files/size-${size}`)
    assert.equal(up.sizeBytes, size)
    assert.equal(
      (await inGuest(`sha256sum /files/size-${size}`)).split(' ')[0],
      createHash('sha256').update(content).digest('hex'),
    )
    const down = await sandbox.files.download(`/files/size-${size}`, `${file}.back`)
    assert.equal(down.sizeBytes, size)
    assert.ok((await readFile(`${file}.back`)).equals(content))
  }
})

test('every checksum that is offered agrees with an independent program', async () => {
  const content = Buffer.from('Hello, world!')
  const known = {
    md5: '6cd3556deb0da54bca060b4c39479839',
    sha256: createHash('sha256').update(content).digest('hex'),
    xxh64: 'f58336a78b6f9476',
  }
  for (const [algorithm, value] of Object.entries(known)) {
    const checksum = algorithm as keyof typeof known
    assert.deepEqual((await sandbox.files.write('/tmp/hello', content, { checksum })).checksum, { algorithm, value })
  }
})

test('modes are kept, or as asked for, and set-id bits do not reach the host', async () => {
  const file = path.join(local, 'mode')
  await writeFile(file, 'x')
  await chmod(file, 0o751)
  await sandbox.files.upload(file, '/tmp/mode')
  assert.equal(await inGuest('stat -c %a /tmp/mode'), '751\n')
  await sandbox.files.write('/tmp/asked', 'x', { mode: 0o4755, user: 'sandbox' })
  assert.equal(await inGuest('stat -c "%a %U" /tmp/asked'), '4755 sandbox\n')
  await sandbox.files.download('/tmp/asked', path.join(local, 'asked'))
  assert.equal((await stat(path.join(local, 'asked'))).mode & 0o7777, 0o755)
})

test('a file is replaced in one step: a reader has the old one whole', async () => {
  await sandbox.files.write('/tmp/replaced', 'old content')
  const reading = sandbox.exec('exec 3< /tmp/replaced; echo open; read go; cat <&3', {
    input: (async function* () {
      await sandbox.files.write('/tmp/replaced', 'new')
      yield Buffer.from('go\n')
    })(),
  })
  assert.equal((await reading.collect()).stdout, 'open\nold content')
  assert.equal(await inGuest('cat /tmp/replaced'), 'new')
  assert.equal(await inGuest('ls -A /tmp | grep -c bandsox- || true'), '0\n')
})

test('an upload onto a symbolic link replaces what it points to', async () => {
  await inGuest('mkdir -p /links && echo old > /links/target && ln -s target /links/link')
  await sandbox.files.write('/links/link', 'new')
  assert.equal(await inGuest('readlink /links/link; cat /links/target'), 'target\nnew')
})

test('content may be a stream of unknown length, and be read back into memory', async () => {
  async function* pieces() {
    for (let index = 0; index < 300; index++) yield Buffer.from(`piece ${index}\n`)
  }
  const { sizeBytes } = await sandbox.files.write('/tmp/stream', pieces())
  const back = await sandbox.files.read('/tmp/stream')
  assert.equal(back.length, sizeBytes)
  assert.ok(back.toString().endsWith('piece 299\n'))
  await rejectsWith('output-too-large', sandbox.files.read('/tmp/stream', { maxBytes: 100 }))
})

test('files of /proc, which claim to be empty, are read', async () => {
  assert.match((await sandbox.files.read('/proc/meminfo')).toString(), /^MemTotal:/)
})

test('what is not there, not a file, or not a path is refused at once and by name', async () => {
  const startedAt = performance.now()
  await rejectsWith('file-not-found', sandbox.files.download('/no/such/file', path.join(local, 'nothing')))
  await rejectsWith('file-not-found', sandbox.files.upload(path.join(local, 'no-such-file'), '/tmp/x'))
  await rejectsWith('file-not-found', sandbox.files.write('/no/folder/file', 'x', { makeParents: false }))
  await rejectsWith('file-error', sandbox.files.download('/tmp', path.join(local, 'folder')))
  await rejectsWith('file-error', sandbox.files.write('/tmp', 'x'))
  await rejectsWith('file-error', sandbox.files.upload(local, '/tmp/x'))
  await rejectsWith('file-error', sandbox.files.download('/dev/zero', path.join(local, 'zero')))
  await rejectsWith('bad-request', sandbox.files.write('relative/path', 'x'))
  assert.ok(performance.now() - startedAt < 5_000)
  assert.deepEqual(
    (await readdir(local)).filter((name) => /nothing|folder|zero|bandsox-/.test(name)),
    [],
  )
})

test('a full guest disk is said by name, and nothing of the file stays', async () => {
  await sandbox.files.write('/full/kept', 'kept')
  await rejectsWith('no-space', sandbox.files.write('/full/kept', randomBytes(100_000_000, 4)))
  assert.equal(await inGuest('ls -A /full; cat /full/kept'), 'kept\nkept')
})

test('a cancelled transfer leaves nothing on either side', async () => {
  const controller = new AbortController()
  const reason = new Error('enough')
  async function* endless() {
    for (let index = 0; ; index++) {
      if (index === 20) controller.abort(reason)
      yield randomBytes(65_536, index + 1)
    }
  }
  await assert.rejects(sandbox.files.write('/cancel/up', endless(), { signal: controller.signal }), reason)
  await inGuest('head -c 20000000 /dev/zero > /cancel/big')
  await assert.rejects(
    sandbox.files.download('/cancel/big', path.join(local, 'cancelled'), {
      signal: AbortSignal.timeout(60),
    }),
    { name: 'TimeoutError' },
  )
  assert.deepEqual(
    (await readdir(local)).filter((name) => name.includes('cancelled')),
    [],
  )
  assert.equal(await inGuest('sleep 0.3; ls -A /cancel'), 'big\n')
})

test('folders are listed and files described, odd names included', async () => {
  await inGuest(
    `mkdir -p /list/folder && cd /list && echo 12345 > 'a "quoted" name' && ln -s folder link && touch "$(printf 'bad\\377')" && mkfifo fifo`,
  )
  const entries: FileEntry[] = []
  for await (const entry of sandbox.files.list('/list')) entries.push(entry)
  const byName = new Map(entries.map((entry) => [entry.name, entry]))
  assert.deepEqual([...byName.keys()].sort(), ['a "quoted" name', 'bad\ufffd', 'fifo', 'folder', 'link'])
  assert.equal(byName.get('a "quoted" name')?.sizeBytes, 6)
  assert.equal(byName.get('link')?.target, 'folder')
  assert.equal(Buffer.from(byName.get('bad\ufffd')?.rawName ?? '', 'base64').toString('latin1'), 'bad\xff')
  assert.equal((await sandbox.files.stat('/list/link')).type, 'directory')
  assert.equal((await sandbox.files.stat('/list/link', { followLinks: false })).type, 'symlink')
  await rejectsWith('file-not-found', sandbox.files.stat('/list/none'))
  await inGuest('mkdir /many && cd /many && i=0; while [ $i -lt 1500 ]; do : > file$i; i=$((i+1)); done')
  let count = 0
  for await (const _ of sandbox.files.list('/many')) count++
  assert.equal(count, 1500)
})

test('a download into a folder takes the name that the file has in the guest', async () => {
  await mkdir(path.join(local, 'into'))
  await sandbox.files.write('/tmp/named', 'content')
  const { path: where } = await sandbox.files.download('/tmp/named', path.join(local, 'into'))
  assert.equal(where, path.join(local, 'into/named'))
  assert.equal(await readFile(where, 'utf8'), 'content')
})
