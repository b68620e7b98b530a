/** The command line on a real VM: what is printed, what is JSON, and what the shell sees as the status. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { cli, startCli } from './support/command-line.js'
import { isOnFirecracker, type TestStorage, temporaryStorage, until } from './support/storage.js'

let storage: TestStorage
let local: string
const run = (args: string[], input?: string) => cli(storage.folder, args, input)

before(async () => {
  storage = await temporaryStorage()
  local = await mkdtemp(path.join(tmpdir(), 'bandsox-cli-'))
  const { status, stdout, stderr } = await run(['create', 'bandsox/base', '--name', 'box', '--env', 'GREETING=hello'])
  assert.equal(status, 0, stderr)
  assert.match(stdout, /^VM created: sbx_[a-z2-7]{10} \(box\) in /)
})

after(async () => {
  const { status } = await run(['vm', 'delete', '--force', 'box'])
  assert.equal(status, 0)
  await storage.assertNothingLeft()
  await storage[Symbol.asyncDispose]()
  await rm(local, { recursive: true })
})

test("exec passes output, input, and the command's own status", async () => {
  assert.deepEqual(await run(['exec', 'box', 'sh', '-c', 'echo $GREETING; echo oops >&2; exit 7']), {
    status: 7,
    stdout: 'hello\n',
    stderr: 'oops\n',
  })
  assert.equal((await run(['exec', '-i', 'box', 'tr', 'a-z', 'A-Z'], 'shout')).stdout, 'SHOUT')
  assert.equal((await run(['exec', '--shell', 'box', 'echo', '$GREETING', '|', 'wc', '-c'])).stdout, '6\n')
  assert.equal((await run(['exec', 'box', '--', 'echo', '--json'])).stdout, '--json\n')
  assert.equal((await run(['exec', 'box', 'sh', '-c', 'kill -9 $$'])).status, 137)
  assert.equal((await run(['exec', '--timeout', '300ms', 'box', 'sleep', '60'])).status, 124)
})

test('exec --json has both outputs and the end in one object', async () => {
  const { stdout, status } = await run(['--json', 'exec', 'box', 'sh', '-c', 'echo out; echo err >&2; exit 3'])
  assert.equal(status, 3)
  assert.deepEqual(JSON.parse(stdout), {
    exitCode: 3,
    signal: null,
    timedOut: false,
    link: 'vsock',
    stdout: 'out\n',
    stderr: 'err\n',
  })
})

test('errors of ours have a sentence, a hint and a status that no command of the guest would use', async () => {
  const missing = await run(['exec', 'box', 'no-such-program'])
  assert.equal(missing.status, 127)
  assert.match(missing.stderr, /no-such-program.*no such command/)
  const unknown = await run(['exec', 'nobody', 'true'])
  assert.equal(unknown.status, 66)
  assert.match(unknown.stderr, /^bandsox: there is no sandbox "nobody"\nhint: .*bandsox vm list\n$/)
  const running = await run(['vm', 'delete', 'box'])
  assert.equal(running.status, 75)
  assert.match(running.stderr, /it is running/)
  const json = await run(['--json', 'exec', 'nobody', 'true'])
  assert.equal(JSON.parse(json.stderr).code, 'not-found')
})

test('upload and download say by which link, and what was compared', async () => {
  const file = path.join(local, 'file')
  await writeFile(file, 'content')
  const up = await run(['upload', 'box', file, '/data/deep/file'])
  assert.match(up.stdout, /^File uploaded via vsock: \/data\/deep\/file \(7 B in .*, xxh64 [0-9a-f]{16}\)\n$/)
  const down = await run([
    '--json',
    'download',
    'box',
    '/data/deep/file',
    path.join(local, 'back'),
    '--checksum',
    'sha256',
  ])
  const result = JSON.parse(down.stdout) as { checksum: { algorithm: string }; link: string; sizeBytes: number }
  assert.deepEqual({ ...result.checksum, value: '' }, { algorithm: 'sha256', value: '' })
  assert.equal(await readFile(path.join(local, 'back'), 'utf8'), 'content')
  const missing = await run(['download', 'box', '/no/such/file', path.join(local, 'none')])
  assert.equal(missing.status, 66)
  assert.match(missing.stderr, /\/no\/such\/file/)
})

test('vm list and show, logs and doctor tell what there is', async () => {
  const list = await run(['vm', 'list'])
  assert.match(list.stdout, /^NAME +STATUS +ID +IMAGE.*\nbox +running +sbx_\w+ +bandsox\/base.*\nTotal: 1 VM\(s\)\n$/)
  const [info] = JSON.parse((await run(['--json', 'vm', 'list'])).stdout) as { id: string; state: { kind: string } }[]
  assert.equal(info?.state.kind, 'running')
  assert.match((await run(['vm', 'show', info?.id ?? ''])).stdout, /vsock +CID 3, port 9000/)
  assert.match((await run(['logs', 'box'])).stdout, /ready on vsock port 9000/)
  const doctor = await run(['doctor'])
  assert.equal(doctor.status, 0, doctor.stdout)
  assert.match(doctor.stdout, isOnFirecracker ? /firecracker +ok/ : /qemu +ok/)
})

test('the log has the lines that operators were told to look for, at level debug', async () => {
  const made = await run(['--log-level', 'debug', 'create', 'bandsox/base', '--name', 'logged', '--disk-size', '64'])
  const { id, vsock, directory } = JSON.parse((await run(['--json', 'vm', 'show', 'logged'])).stdout) as {
    id: string
    vsock: { cid: number; port: number }
    directory: string
  }
  const { cid, port } = vsock
  const socket = path.join(directory, 'vsock.sock')
  const atStart = [
    `Allocated CID: ${cid}`,
    `Allocated port: ${port}`,
    `Configuring ${isOnFirecracker ? 'firecracker' : 'qemu'} vsock: CID=${cid}, socket=${socket}`,
    `Vsock bridge enabled: CID=${cid}, port=${port}`,
    `Vsock bridge loop started for ${id}`,
  ]
  const atStop = [
    `Vsock bridge loop stopped for ${id}`,
    `Cleaning up vsock bridge for ${id}`,
    'Closed vsock bridge socket',
    `Removed vsock socket: ${socket}`,
    `Released CID: ${cid}`,
    `Released port: ${port}`,
  ]
  const stopped = await run(['--log-level', 'debug', 'vm', 'stop', 'logged'])
  for (const [stderr, lines] of [
    [made.stderr, atStart],
    [stopped.stderr, atStop],
  ] as const) {
    const logged = stderr.split('\n').map((line) => line.replace(/^\d{4}-\d\d-\d\dT[\d:.]{12}Z DEBUG /, ''))
    assert.deepEqual(
      logged.filter((line) => lines.includes(line)),
      lines,
      stderr,
    )
  }
  assert.deepEqual(JSON.parse((await run(['--json', 'vm', 'show', 'logged'])).stdout).vsock, null)
  assert.equal((await run(['vm', 'rm', 'logged'])).status, 0)
})

test('Ctrl-C ends the command in the guest, and the program with 130', async () => {
  const child = startCli(storage.folder, ['exec', 'box', 'sh', '-c', 'echo started; exec sleep 4321'])
  await once(child.stdout ?? child, 'data')
  child.kill('SIGINT')
  assert.deepEqual(await once(child, 'close'), [130, null])
  await until(
    async () => (await run(['exec', '--shell', 'box', "ps | grep -c '[s]leep 4321' || true"])).stdout === '0\n',
    'sleep to end',
  )
})

test('run boots, runs and removes; --keep leaves it; the status is the command’s', async () => {
  const ran = await run(['run', 'bandsox/base', 'sh', '-c', 'hostname; exit 5'])
  assert.equal(ran.status, 5, ran.stderr)
  assert.match(ran.stdout, /^sbx-/)
  assert.match((await run(['vm', 'list'])).stdout, /Total: 1 VM/)
  const kept = await run(['run', '--keep', '--name', 'kept', 'bandsox/base', 'true'])
  assert.equal(kept.status, 0, kept.stderr)
  assert.match(kept.stderr, /keeps running/)
  assert.equal((await run(['vm', 'stop', 'kept'])).stdout.startsWith('VM stopped: sbx_'), true)
  assert.equal((await run(['vm', 'delete', 'kept'])).status, 0)
})
