/** The core of it all as an ordinary user, without any right of root: what a command of theirs does, and that nothing is left. */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { namesIn, processesIn, until, VMM_PROGRAM } from './support/storage.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const prepared = process.env['BANDSOX_TEST_STORAGE'] ?? ''
/** Of nobody: no name, no home, no group of any use. */
const UID = 54_321
const skip =
  process.getuid?.() === 0 ? false : 'it takes root to become another user; run as one already, the other tests show it'

let folder: string
let storage: string

before(() => {
  if (skip !== false) return
  folder = mkdtempSync(path.join(tmpdir(), 'bandsox-user-'))
  storage = path.join(folder, 'storage')
  // A checkout may lie where others cannot go.
  const program = path.join(folder, 'program')
  execFileSync('mkdir', ['-p', path.join(program, 'packages/bandsox'), path.join(program, 'packages/sdk'), storage])
  copy(path.join(root, 'node_modules'), program)
  for (const name of ['dist', 'native', 'package.json'])
    copy(path.join(root, 'packages/bandsox', name), path.join(program, 'packages/bandsox'))
  for (const name of ['dist', 'package.json'])
    copy(path.join(root, 'packages/sdk', name), path.join(program, 'packages/sdk'))
  const daemon = execFileSync('find', [path.join(path.dirname(prepared)), '-path', '*/bin/vhost-device-vsock'], {
    encoding: 'utf8',
  }).trim()
  if (daemon !== '') execFileSync('install', ['-D', '-m', '755', daemon, path.join(folder, 'bin/vhost-device-vsock')])
  execFileSync('cp', ['-a', ...['boot', 'images', 'disks'].map((name) => path.join(prepared, name)), storage])
  execFileSync('chown', ['-R', `${UID}:${UID}`, storage])
  execFileSync('chmod', ['711', folder])
})

after(() => {
  if (skip !== false) return
  for (const { pid } of processesIn(storage)) process.kill(pid, 'SIGKILL')
  rmSync(folder, { recursive: true, force: true })
})

/** Hard links where they can be. */
function copy(from: string, to: string): void {
  if (spawnSync('cp', ['-al', from, to]).status !== 0) execFileSync('cp', ['-a', from, to])
}

function bandsox(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const user = [
    '--reuid',
    String(UID),
    '--regid',
    String(UID),
    '--clear-groups',
    '--no-new-privs',
    '--bounding-set=-all',
    '--inh-caps=-all',
  ]
  const main = path.join(folder, 'program/packages/bandsox/dist/cli/main.js')
  return spawnSync('setpriv', [...user, process.execPath, main, '--storage', storage, ...args], {
    encoding: 'utf8',
    timeout: 60_000,
    env: { PATH: `${path.join(folder, 'bin')}:/usr/bin:/bin`, HOME: '/nonexistent' },
  })
}

function succeeds(...args: string[]): string {
  const { status, stdout, stderr } = bandsox(...args)
  assert.equal(status, 0, `${args.join(' ')}: ${stderr}`)
  return stdout
}

test('creates, uses, stops, starts and deletes; all processes are the user’s, all files for the user only', {
  skip,
}, async () => {
  assert.match(
    succeeds('create', 'bandsox/base', '--name', 'box', '--disk-size', '64', '-l', 'of=user'),
    /^VM created: sbx_/,
  )
  assert.equal(succeeds('exec', 'box', '--', 'sh', '-c', 'id -u; echo kept > /root/file; sync'), '0\n')
  const running = processesIn(storage)
  assert.ok(running.some(({ program }) => VMM_PROGRAM.test(program)))
  for (const { pid } of running) assert.equal(statSync(`/proc/${pid}`).uid, UID)
  writeFileSync(path.join(folder, 'local'), 'content', { mode: 0o644 })
  assert.match(succeeds('upload', 'box', path.join(folder, 'local'), '/root/up'), /^File uploaded via vsock/)
  succeeds('download', 'box', '/root/up', path.join(storage, 'vms', 'back'))
  assert.equal(readFileSync(path.join(storage, 'vms', 'back'), 'utf8'), 'content')
  rmSync(path.join(storage, 'vms', 'back'))
  succeeds('vm', 'pause', 'box')
  succeeds('vm', 'resume', 'box')
  succeeds('vm', 'update', 'box', '--disk-rate', '50')
  succeeds('vm', 'stop', 'box')
  succeeds('vm', 'start', 'box')
  assert.equal(succeeds('exec', 'box', 'cat', '/root/file'), 'kept\n')
  assert.match(succeeds('list', '-q', '-l', 'of=user'), /^sbx_/)
  assert.match(succeeds('vsock', 'list'), /box +running/)
  assert.equal(statSync(storage).mode & 0o777, 0o700)
  succeeds('vm', 'delete', '--force', 'box')
  await until(() => processesIn(storage).length === 0, 'all processes to end')
  assert.deepEqual(namesIn(path.join(storage, 'vms')), [])
  assert.deepEqual(
    readdirSync(storage).filter((name) => statSync(path.join(storage, name)).uid !== UID),
    [],
  )
})

test('is told what they may not do: root’s storage, and a CPU limit without a delegated control group', {
  skip,
}, () => {
  const limited = bandsox('create', 'bandsox/base', '--cpus', '0.5')
  assert.ok(limited.status === 69 || limited.status === 0, limited.stderr)
  if (limited.status === 69) assert.match(limited.stderr, /cannot limit a sandbox to 0\.5 CPUs: .*\nhint: /)
  execFileSync('chown', ['0:0', storage])
  const foreign = bandsox('vm', 'list')
  execFileSync('chown', [`${UID}:${UID}`, storage])
  assert.equal(foreign.status, 77, foreign.stderr)
  assert.match(foreign.stderr, /belongs to user 0, and you are user 54321: two users cannot share one\nhint: /)
})
