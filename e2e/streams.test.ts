/** Ports forwarded into a real guest without a network, and trees copied into it and out of it. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmod,
  link,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { openBandSox, type Sandbox } from 'bandsox'
import { Agent } from 'bandsox/internal/guest/agent.js'
import { askLinks } from 'bandsox/internal/guest/links.js'
import { socketLink } from 'bandsox/internal/link/socket-link.js'
import { cli, startCli } from './support/command-line.js'
import { randomBytes } from './support/random.js'
import { type TestStorage, temporaryStorage } from './support/storage.js'
import { differences, digestTree, parseTreeDigest, treeDigestProgram } from './support/tree-digest.js'

const PORT = 7007
const echoProgram = fileURLToPath(new URL('../../packages/bandsox/native/echo-service', import.meta.url))

let storage: TestStorage
let sandbox: Sandbox
let local: string
let echo: AsyncIterator<unknown>

before(async () => {
  storage = await temporaryStorage()
  local = await mkdtemp(path.join(tmpdir(), 'bandsox-streams-'))
  const bandsox = await openBandSox({ storage: storage.folder })
  sandbox = await bandsox.create('bandsox/base', { diskMib: 256, name: 'box' })
  await sandbox.files.upload(treeDigestProgram, '/bin/tree-digest', { mode: 0o755 })
  await sandbox.files.upload(echoProgram, '/bin/echo-service', { mode: 0o755 })
  echo = sandbox.exec(['/bin/echo-service', String(PORT)]).output[Symbol.asyncIterator]()
  await echo.next() // it listens
})

after(async () => {
  await echo?.return?.()
  await sandbox?.[Symbol.asyncDispose]()
  await storage?.assertNothingLeft()
  await storage?.[Symbol.asyncDispose]()
  await rm(local, { recursive: true })
})

const bandsox = (...args: string[]) => cli(storage.folder, args)

/** Sends all, ends its side, and reads to the end of the other. */
async function exchange(port: number, content: Buffer): Promise<Buffer> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  socket.end(content)
  const parts: Buffer[] = []
  for await (const chunk of socket) parts.push(chunk as Buffer)
  return Buffer.concat(parts)
}

test('the guest says how it sees its links', async () => {
  const { directory, vsock } = await sandbox.info()
  assert.ok(vsock !== null)
  const agent = new Agent([socketLink('vsock', path.join(directory, 'vsock.sock'), vsock.port)])
  try {
    const links = await askLinks(agent)
    assert.deepEqual([links.vsock.kernel, links.vsock.device], [true, true])
    assert.deepEqual([links.vsock.cid, links.vsock.port], [vsock.cid, vsock.port])
    assert.equal(links.vsock.reason, undefined)
  } finally {
    agent.close()
  }
})

test('a forwarded port carries fifty connections at once, half-closed, into a guest without a network', async () => {
  await using forward = await sandbox.forward({ guestPort: PORT })
  const contents = Array.from({ length: 50 }, (_, index) => randomBytes(1_000 * (index + 1), 100 + index))
  const answers = await Promise.all(contents.map((content) => exchange(forward.hostPort, content)))
  assert.ok(answers.every((answer, index) => answer.equals(contents[index] ?? Buffer.alloc(0))))
  assert.equal(forward.connections.opened, 50)
  assert.equal(forward.connections.failed, 0)
})

test('a forwarded port carries much both ways at once, and commands run meanwhile', async () => {
  await using forward = await sandbox.forward({ guestPort: PORT })
  const content = randomBytes(16 * 1024 * 1024, 7)
  const [answer, { stdout }] = await Promise.all([
    exchange(forward.hostPort, content),
    sandbox.exec(['echo', 'hi']).collect(),
  ])
  assert.ok(answer.equals(content))
  assert.equal(stdout, 'hi\n')
})

test('a guest that refuses resets the client, and the failure is told', async () => {
  const failures: string[] = []
  await using forward = await sandbox.forward({ guestPort: 9, onFailure: (error) => failures.push(error.code) })
  const socket = connect(forward.hostPort, '127.0.0.1')
  const [error] = (await once(socket, 'error')) as [NodeJS.ErrnoException]
  assert.equal(error.code, 'ECONNRESET')
  assert.deepEqual(failures, ['link-refused'])
})

test('the command port-forward says where it listens, what failed, and ends with Ctrl-C', async () => {
  const child = startCli(storage.folder, ['port-forward', 'box', `:${PORT}`, ':9'])
  let stdout = ''
  let stderr = ''
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  while (stdout.split('\n').length < 3) await once(child.stdout as NonNullable<typeof child.stdout>, 'data')
  const ports = [...stdout.matchAll(/^Forwarding from 127\.0\.0\.1:(\d+) -> (\d+)$/gm)]
  assert.deepEqual(
    ports.map(([, , guest]) => guest),
    [String(PORT), '9'],
  )
  assert.equal(String(await exchange(Number(ports[0]?.[1]), Buffer.from('hello'))), 'hello')
  const told = once(child.stderr as NonNullable<typeof child.stderr>, 'data')
  await once(connect(Number(ports[1]?.[1]), '127.0.0.1'), 'error')
  await told
  child.kill('SIGINT')
  const [status] = await once(child, 'close')
  assert.equal(status, 0, stderr)
  assert.match(stderr, /^a connection to port 9 failed: .*connection refused\n$/)
})

test('port-forward refuses bad words before it opens anything, and a port in use', async () => {
  for (const words of [['x'], ['1:2:3'], ['0'], ['80:65536'], ['80:'], ['8080:80', '8080:81']]) {
    const { status, stderr } = await bandsox('port-forward', 'box', ...words)
    assert.equal(status, 64, stderr)
  }
  const taken = createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  const { port } = taken.address() as { port: number }
  const { status, stderr } = await bandsox('port-forward', 'box', `${port}:80`)
  taken.close()
  assert.equal(status, 71)
  assert.match(stderr, /the port is in use/)
})

/** With what a copy has to keep, as far as an ordinary user can make it. */
async function nastyTree(folder: string): Promise<void> {
  await mkdir(path.join(folder, 'deep/er'), { recursive: true })
  await mkdir(path.join(folder, 'empty'))
  await writeFile(path.join(folder, 'deep/er/file'), randomBytes(3_000_003, 1))
  await link(path.join(folder, 'deep/er/file'), path.join(folder, 'second name'))
  await symlink('../outside', path.join(folder, 'dangling'))
  await writeFile(Buffer.concat([Buffer.from(`${folder}/odd-`), Buffer.from([0xff])]), 'not UTF-8')
  await writeFile(path.join(folder, 'x'.repeat(255)), 'long')
  await mkdir(path.join(folder, ...Array.from({ length: 3 }, () => 'y'.repeat(200))), { recursive: true })
  execFileSync('mkfifo', [path.join(folder, 'fifo')])
  const sparse = await open(path.join(folder, 'sparse'), 'w')
  await sparse.write('here', 5_000_000)
  await sparse.truncate(400 * 1024 ** 2) // more than the guest's disk
  await sparse.close()
  await chmod(path.join(folder, 'empty'), 0o550)
  await chmod(path.join(folder, 'second name'), 0o640)
  await utimes(path.join(folder, 'deep/er'), 1, 1_000_000_000.25)
}

test('a nasty tree is the same in the guest, and the same again when it comes back', async () => {
  const source = path.join(local, 'tree')
  await mkdir(source)
  await nastyTree(source)
  const expected = await digestTree(source)
  const isIn = await sandbox.files.copyIn(source, '/srv-tree')
  const { stdout, stderr, exitCode } = await sandbox.exec(['/bin/tree-digest', '-root', '/srv-tree']).collect()
  assert.equal(exitCode, 0, stderr)
  assert.deepEqual(differences(expected, parseTreeDigest(stdout)), [])
  const out = await sandbox.files.copyOut('/srv-tree', path.join(local, 'back'))
  assert.deepEqual(differences(expected, await digestTree(path.join(local, 'back'))), [])
  assert.deepEqual([out.files, out.folders, out.links, out.bytes], [isIn.files, isIn.folders, isIn.links, isIn.bytes])
  assert.deepEqual([isIn.skippedCount, out.skippedCount], [0, 0])
  assert.equal((await stat(path.join(local, 'back/deep/er'))).mtimeMs, 1_000_000_000_250)
  assert.ok((await stat(path.join(local, 'back/sparse'))).blocks < 1_000)
})

test('a copy runs in a guest that has hidden its /proc', async () => {
  assert.equal((await sandbox.exec('mount -t tmpfs none /proc').collect()).exitCode, 0)
  try {
    await writeFile(path.join(local, 'small'), 'small')
    await sandbox.files.copyIn(path.join(local, 'small'), '/without-proc')
    assert.equal(String(await sandbox.files.read('/without-proc')), 'small')
  } finally {
    await sandbox.exec('umount /proc').collect()
  }
})

test('an aborted copy leaves nothing, in the guest or here', async () => {
  const large = path.join(local, 'large')
  await writeFile(large, randomBytes(24 * 1024 * 1024, 3))
  await sandbox.exec('mkdir /aborted && head -c 24000000 /dev/urandom > /large').collect()
  const into = path.join(local, 'aborted')
  await mkdir(into)
  for (const copy of [
    (options: object) => sandbox.files.copyIn(large, '/aborted', options),
    (options: object) => sandbox.files.copyOut('/large', into, options),
  ]) {
    const controller = new AbortController()
    const onProgress = () => controller.abort(new Error('enough'))
    await assert.rejects(copy({ signal: controller.signal, onProgress }), /enough/)
  }
  assert.equal((await sandbox.exec('ls -A /aborted').collect()).stdout, '')
  assert.deepEqual(await readdir(into), [])
})

test('the command cp goes both ways, by patterns and as a tar, and says what it did', async () => {
  const source = path.join(local, 'project')
  for (const folder of ['src', 'node_modules/x']) await mkdir(path.join(source, folder), { recursive: true })
  for (const file of ['src/a.py', 'src/b.txt', 'node_modules/x/c.py']) await writeFile(path.join(source, file), file)
  const up = await bandsox('cp', '--exclude', 'node_modules/', source, 'box:/')
  assert.equal(up.stdout, 'Copied 2 files, 2 folders, 17 B to box:/ via vsock\n', up.stderr)
  const down = await bandsox('cp', '--include', '*.py', 'box:/project', path.join(local, 'chosen'))
  assert.match(down.stdout, /^Copied 1 file, 2 folders, 8 B to .*chosen via vsock\n$/, down.stderr)
  assert.equal(await readFile(path.join(local, 'chosen/src/a.py'), 'utf8'), 'src/a.py')
  const several = await bandsox('cp', '-q', path.join(source, 'src/a.py'), path.join(source, 'src/b.txt'), 'box:/tmp')
  assert.deepEqual([several.status, several.stdout], [0, ''], several.stderr)
  assert.equal((await sandbox.exec('cat /tmp/a.py /tmp/b.txt').collect()).stdout, 'src/a.pysrc/b.txt')
  const command = `node ${JSON.stringify(fileURLToPath(new URL('../../packages/bandsox/dist/cli/main.js', import.meta.url)))} --storage ${JSON.stringify(storage.folder)}`
  execFileSync('sh', ['-c', `${command} cp box:/project - | tar -x -C ${JSON.stringify(local)} --one-top-level=tarred`])
  assert.equal(await readFile(path.join(local, 'tarred/project/src/b.txt'), 'utf8'), 'src/b.txt')
  execFileSync('sh', ['-c', `tar -c -C ${JSON.stringify(source)} src | ${command} cp - box:/tmp`])
  assert.equal((await sandbox.exec('cat /tmp/src/a.py').collect()).stdout, 'src/a.py')
})

test('cp refuses what makes no sense before it touches anything', async () => {
  for (const [words, status, said] of [
    [['a'], 64, /SRC and DST/],
    [['a', 'b'], 64, /one side must be VM:PATH/],
    [['box:/a', 'box:/b'], 64, /one side must be VM:PATH/],
    [['box:a', '.'], 64, /no absolute path/],
    [[':/a', '.'], 64, /names no sandbox/],
    [['-', 'x', 'box:/'], 64, /stands alone/],
    [['--exclude', 'x', '-', 'box:/'], 64, /leave --include and --exclude out/],
    [['--exclude', '[', local, 'box:/'], 64, /cannot exclude/],
    [['box:/none', local], 66, /no such file/],
    [[path.join(local, 'none'), 'box:/'], 66, /ENOENT/],
    [[local, 'nobody:/'], 66, /nobody/],
    [[treeDigestProgram, 'box:/none/'], 66, /no such folder/],
    [[treeDigestProgram, 'box:/none/deeper'], 66, /none/],
    [[local, 'box:/etc/passwd'], 73, /no folder/],
  ] as const) {
    const result = await bandsox('cp', ...words)
    assert.equal(result.status, status, `${words.join(' ')}: ${result.stderr}`)
    assert.match(result.stderr, said)
  }
})
