/** What a user can get wrong, and what a host or a guest can: each has a sentence, a hint and a status, in time, and leaves nothing. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, unlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { BandSoxError, openBandSox, prepareHost, type Sandbox } from 'bandsox'
import { LocalBandSox } from 'bandsox/internal/sandbox/local-bandsox.js'
import { type CliResult, cli, startCli } from './support/command-line.js'
import { processesIn, type TestStorage, temporaryStorage, until, VMM_PROGRAM } from './support/storage.js'

const LIMIT_MS = 15_000
const printProcess = fileURLToPath(new URL('../../packages/bandsox/native/print-process', import.meta.url))

let storage: TestStorage
let local: string

before(async () => {
  storage = await temporaryStorage()
  local = await mkdtemp(path.join(tmpdir(), 'bandsox-bad-'))
})

after(async () => {
  await storage[Symbol.asyncDispose]()
  await rm(local, { recursive: true, force: true })
})

interface Refusal {
  what: string
  args: string[]
  status: number
  says: RegExp
  hint?: RegExp
}

async function assertRefused(
  { args, status, says, hint }: Omit<Refusal, 'what'>,
  folder = storage.folder,
): Promise<CliResult> {
  const startedAt = performance.now()
  const result = await cli(folder, args)
  assert.ok(performance.now() - startedAt < LIMIT_MS, `it took ${performance.now() - startedAt} ms`)
  assert.equal(result.status, status, result.stderr)
  assert.match(result.stderr, says)
  assert.doesNotMatch(result.stderr, /^\s+at /m, 'a stack trace is for defects')
  if (hint !== undefined) assert.match(result.stderr, hint)
  return result
}

const create = (...options: string[]) => ['create', 'bandsox/base', ...options]

describe('create', () => {
  const refusals: Refusal[] = [
    {
      what: 'an image that is not here',
      args: ['create', 'nobody/nothing:1', '--pull', 'never'],
      status: 66,
      says: /docker\.io\/nobody\/nothing:1 is not on this host/,
      hint: /hint: fetch it: bandsox image pull/,
    },
    { what: 'a reference that is none', args: ['create', 'Not An Image'], status: 64, says: /Not An Image/ },
    {
      what: 'a registry that is not there',
      args: ['create', 'localhost:9/x'],
      status: 69,
      says: /localhost:9/,
      hint: /hint: check the name and the network/,
    },
    {
      what: 'memory of 0',
      args: create('--mem', '0'),
      status: 64,
      says: /memoryMib: 0 is not allowed; it must be an integer from 64 to 1048576/,
    },
    {
      what: 'memory that no kernel boots in',
      args: create('--mem', '16'),
      status: 64,
      says: /memoryMib: 16 is not allowed/,
    },
    {
      what: 'memory beyond bounds',
      args: create('--mem', '99999999'),
      status: 64,
      says: /memoryMib: 99999999 is not allowed/,
    },
    {
      what: 'memory that this host does not have',
      args: create('--mem', '1000000'),
      status: 71,
      says: /no memory for a sandbox of 1000000 MiB: 0 running ones have 0 of \d+ MiB/,
      hint: /hint: give it less \(--mem\)/,
    },
    {
      what: 'no CPU',
      args: create('--vcpu', '0'),
      status: 64,
      says: /vcpu: 0 is not allowed; it must be an integer from 1 to 32/,
    },
    { what: 'a disk of nothing', args: create('--disk-size', '1'), status: 64, says: /diskMib: 1 is not allowed/ },
    { what: 'a variable without a name', args: create('--env', '=x'), status: 64, says: /it must be NAME=value/ },
    { what: 'a label without a value', args: create('--label', 'x'), status: 64, says: /it must be key=value/ },
    {
      what: 'a label with an odd key',
      args: create('--label', '../x=1'),
      status: 64,
      says: /label: "\.\.\/x" is not allowed/,
    },
    {
      what: 'a name with odd characters',
      args: create('--name', 'a/../b'),
      status: 64,
      says: /name: "a\/\.\.\/b" is not allowed/,
    },
    { what: 'metadata that is no JSON', args: create('--metadata', '{'), status: 64, says: /it must be a JSON object/ },
    {
      what: 'a limit that stops everything',
      args: create('--disk-iops', '0'),
      status: 64,
      says: /limits\.diskOperationsPerSecond \(--disk-iops\): 0 is not allowed/,
    },
    {
      what: 'a vsock mode that is none',
      args: create('--vsock', 'maybe'),
      status: 64,
      says: /Allowed choices are auto, on, off/,
    },
  ]
  for (const refusal of refusals) {
    test(`with ${refusal.what} is refused, and nothing is touched`, async () => {
      await assertRefused(refusal)
      await storage.assertNothingLeft()
    })
  }

  test('without a kernel says how to get one', async () => {
    await using bare = await temporaryStorage()
    await rm(path.join(bare.folder, 'boot'), { recursive: true })
    await assertRefused({ args: create(), status: 69, says: /kernel/, hint: /hint: .*(setup|init)/ }, bare.folder)
    await bare.assertNothingLeft()
  })

  test('with a kernel that was damaged names the file', async () => {
    await using bare = await temporaryStorage()
    const boot = path.join(bare.folder, 'boot')
    const found = execFileSync('find', [boot, '-name', 'vmlinux*', '-type', 'f'], { encoding: 'utf8' })
      .trim()
      .split('\n')
    for (const file of found) {
      await unlink(file) // a hard link to the one that all tests have
      await writeFile(file, 'not a kernel')
    }
    const { stderr } = await assertRefused({ args: create(), status: 74, says: /vmlinux/ }, bare.folder)
    assert.match(stderr, /hint: build it anew/)
    await bare.assertNothingLeft()
  })

  test('without QEMU says what to install', async () => {
    const config = {
      storage: storage.folder,
      shimPath: fileURLToPath(new URL('../../packages/bandsox/native/bandsox-shim', import.meta.url)),
      searchPath: [],
      warn: () => undefined,
    }
    await using bandsox = await LocalBandSox.open(config)
    await assert.rejects(bandsox.create('bandsox/base'), (error) => {
      assert.ok(error instanceof BandSoxError && error.code === 'host-missing', String(error))
      assert.match(error.message, /qemu-system-x86_64/)
      assert.match(error.hint ?? '', /install|doctor/)
      return true
    })
    await storage.assertNothingLeft()
  })

  test('on a full disk says how much is needed', { skip: canMount() }, async () => {
    const small = path.join(local, 'small')
    await mkdir(small)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', small])
    try {
      const folder = path.join(small, 'storage')
      await assertRefused(
        {
          args: create(),
          status: 73,
          says: /no space for a sandbox: .* has \d+ MiB free, and 32 are needed/,
          hint: /bandsox system prune/,
        },
        folder,
      )
    } finally {
      execFileSync('umount', [small])
    }
  })
})

/** @returns Why a test that mounts is skipped. */
function canMount(): string | false {
  if (process.getuid?.() !== 0) return 'mounting needs root'
  try {
    execFileSync('unshare', ['--mount', 'true'], { stdio: 'ignore' })
    return false
  } catch {
    return 'this host lets nobody mount'
  }
}

describe('the storage', () => {
  test('that cannot be written, is a file, or holds something else is refused by name', async () => {
    const file = path.join(local, 'file')
    await writeFile(file, 'x')
    const foreign = path.join(local, 'foreign')
    await mkdir(foreign)
    await writeFile(path.join(foreign, 'thesis.tex'), 'x')
    const cases: [string, RegExp][] = [
      [file, /is not a folder/],
      [path.join(file, 'below'), /is not a folder/],
      ['/proc/bandsox', /cannot write to the storage \/proc\/bandsox/],
      [foreign, /not empty: it holds "thesis\.tex"/],
    ]
    for (const [folder, says] of cases)
      await assertRefused({ args: ['vm', 'list'], status: 73, says, hint: /--storage/ }, folder)
    await assertRefused(
      { args: ['vm', 'list'], status: 64, says: /path of the storage is \d+ bytes long/ },
      `/tmp/${'x/'.repeat(2_000)}`,
    )
  })
})

describe('files', () => {
  let sandbox: Sandbox

  before(async () => {
    sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base', { name: 'box' })
    await sandbox.exec('mkdir /data; echo x > /data/file').wait()
    await writeFile(path.join(local, 'source'), 'content')
    await mkdir(path.join(local, 'folder'), { recursive: true })
  })
  after(() => sandbox.delete({ force: true }))

  test('that are not there, or are folders, or cannot be written, are refused on both sides', async () => {
    const at = (name: string) => path.join(local, name)
    const long = `/root/${'x'.repeat(300)}`
    const cases: Omit<Refusal, 'what'>[] = [
      { args: ['upload', 'box', at('nowhere'), '/root/a'], status: 66, says: /nowhere/ },
      { args: ['upload', 'box', at('folder'), '/root/a'], status: 73, says: /folder/ },
      { args: ['upload', 'box', at('source'), '/data'], status: 73, says: /\/data/ },
      { args: ['upload', 'box', at('source'), '/proc/nope'], status: 66, says: /\/proc\/nope/ },
      { args: ['upload', 'box', at('source'), 'relative'], status: 64, says: /absolute/ },
      { args: ['upload', 'box', at('source'), long], status: 73, says: /x{100}/ },
      { args: ['download', 'box', '/data/nowhere', at('b')], status: 66, says: /\/data\/nowhere/ },
      { args: ['download', 'box', '/data', at('b')], status: 73, says: /\/data/ },
      { args: ['download', 'box', '/data/file', '/proc/nope/b'], status: 66, says: /\/proc\/nope/ },
      { args: ['download', 'box', '/data/file', path.join(at('source'), 'b')], status: 73, says: /source/ },
      { args: ['exec', '-w', '/no/such/folder', 'box', 'true'], status: 64, says: /\/no\/such\/folder/ },
      { args: ['exec', '-u', 'nobody-there', 'box', 'true'], status: 64, says: /nobody-there/ },
    ]
    for (const refusal of cases)
      await assertRefused(refusal).catch((error: unknown) => assert.fail(`${refusal.args.join(' ')}: ${String(error)}`))
    assert.deepEqual((await sandbox.exec(['ls', '/root']).collect()).stdout, '')
  })

  test('whose VM dies in the middle leave nothing half done on the host, and the error says why', async () => {
    await sandbox.exec('head -c 60000000 /dev/zero > /root/large').wait()
    const child = startCli(storage.folder, ['download', 'box', '/root/large', path.join(local, 'large')])
    let stderr = ''
    child.stderr?.on('data', (chunk) => (stderr += String(chunk)))
    await until(
      () => execFileSync('ls', ['-A', local], { encoding: 'utf8' }).includes('large'),
      'the transfer to begin',
    )
    const vmm = processesIn(storage.folder).find(({ program }) => VMM_PROGRAM.test(program))
    assert.ok(vmm)
    process.kill(vmm.pid, 'SIGKILL')
    const [status] = (await once(child, 'close')) as [number]
    assert.ok(status === 74 || status === 69, `${status}: ${stderr}`)
    assert.match(stderr, /^bandsox: .*(connection|link|guest|closed)/)
    assert.doesNotMatch(execFileSync('ls', ['-A', local], { encoding: 'utf8' }), /large/)
    const { state } = await sandbox.info()
    assert.ok(state.kind === 'failed' && /SIGKILL/.test(state.reason), JSON.stringify(state))
  })
})

describe('a guest', () => {
  test('that never says hello is given up in time, with what it printed', async () => {
    await using other = await temporaryStorage()
    await assertRefused(
      {
        args: create('--boot-timeout', '1s'),
        status: 69,
        says: /cannot boot sandbox sbx_\w+ within 1000 ms: .*it printed/s,
      },
      other.folder,
    )
    await other.assertNothingLeft()
  })

  test('that panics is told by its last lines', async () => {
    await using other = await temporaryStorage()
    // A program that prints and ends: the kernel panics when process 1 does.
    await prepareHost({ storage: other.folder, agentPath: printProcess })
    const { stderr } = await assertRefused(
      { args: create(), status: 70, says: /cannot boot sandbox sbx_\w+: / },
      other.folder,
    )
    assert.match(stderr, /\| .*(Kernel panic|Attempted to kill init)/i)
    await other.assertNothingLeft()
  })
})
