/** The command itself, run as a user runs it. No VM is made. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import type { SandboxRecord } from '../store/record.js'
import { SandboxStore } from '../store/sandbox-store.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'

const MAIN = fileURLToPath(new URL('./main.js', import.meta.url))

/** Each command is a process of its own: two at a time keep two CPUs busy. */
const PARALLEL = { concurrency: 2 }

interface Outcome {
  status: number
  stdout: string
  stderr: string
}

function bandsox(storage: string, ...args: string[]): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    execFile(process.execPath, [MAIN, '--storage', storage, ...args], { timeout: 15_000 }, (error, stdout, stderr) => {
      if (error === null) resolve({ status: 0, stdout, stderr })
      else if (typeof error.code === 'number') resolve({ status: error.code, stdout, stderr })
      else reject(error)
    })
  })
}

async function storageWith(t: TestScope, ...records: Partial<SandboxRecord>[]): Promise<string> {
  const storage = path.join(await temporaryFolder(t), 'storage')
  const store = await SandboxStore.open(storage)
  for (const over of records) {
    const claim = await store.insert(sampleRecord(over))
    await store.makeDirectory(claim.record.id)
    await claim.release()
  }
  store.close()
  return storage
}

describe('a mistake in the command line', PARALLEL, () => {
  const mistakes: [string, string[], RegExp][] = [
    ['an unknown command', ['frobnicate'], /unknown command 'frobnicate'/],
    ['an unknown command below vm', ['vm', 'frobnicate'], /unknown command 'frobnicate'/],
    ['a missing command', ['exec', 'web'], /missing required argument 'command'/],
    [
      'memory that is no number',
      ['create', 'bandsox/base', '--mem', 'much'],
      /'--mem <MiB>' argument 'much' is invalid. it must be a whole number/,
    ],
    [
      'a time that is none',
      ['exec', '--timeout', 'soon', 'web', 'true'],
      /'--timeout <time>' argument 'soon' is invalid/,
    ],
    ['a vsock mode that is none', ['create', 'bandsox/base', '--vsock', 'maybe'], /Allowed choices are auto, on, off/],
    ['too many arguments', ['vm', 'list', 'more'], /too many arguments/],
    ['no command at all', [], /Usage: bandsox/],
  ]
  for (const [what, args, message] of mistakes) {
    it(`such as ${what} exits with 64, says so on stderr, and makes nothing`, async (t) => {
      const folder = await temporaryFolder(t)
      const { status, stdout, stderr } = await bandsox(path.join(folder, 'storage'), ...args)
      assert.equal(status, 64, stderr)
      assert.match(stderr, message)
      assert.equal(stdout, '')
      assert.deepEqual(await readdir(folder), [])
    })
  }

  it('is told as JSON to a program', async (t) => {
    const storage = path.join(await temporaryFolder(t), 'storage')
    for (const [args, detail] of [
      [['--json', 'frobnicate'], /^unknown command 'frobnicate'$/],
      [['create', '--json', 'bandsox/base', '--mem', 'much'], /'much' is invalid/],
      [['--json'], /^no command given$/],
      [['--json', 'vm', 'fork'], /^missing required argument 'vm'$/],
    ] as const) {
      const { status, stdout, stderr } = await bandsox(storage, ...args)
      assert.equal(status, 64)
      const error = JSON.parse(stderr) as Record<string, unknown>
      assert.deepEqual(Object.keys(error).sort(), ['code', 'detail', 'hint'])
      assert.equal(error['code'], 'bad-request')
      assert.match(String(error['detail']), detail)
      assert.equal(stdout, '')
    }
  })
})

describe('templates', PARALLEL, () => {
  it('are listed and removed by themselves: a snapshot is none', async (t) => {
    const storage = await storageWith(t)
    const store = await SandboxStore.open(storage)
    const entry = { sandbox: 'sbx_aaaaaaaaaa', name: 'mine', metadata: {}, base: undefined }
    const kept = await store.snapshots.begin({ ...entry, purpose: 'snapshot', templateKey: undefined })
    const { id = '' } = (await kept?.publish({ manifestDigest: '0'.repeat(64), seals: {} })) ?? {}
    store.close()
    assert.equal((await bandsox(storage, 'template', 'list')).stdout, 'No templates found.\n')
    assert.equal((await bandsox(storage, 'template', 'remove')).stdout, 'No templates found.\n')
    assert.deepEqual(await bandsox(storage, 'template', 'remove', 'mine'), {
      status: 66,
      stdout: '',
      stderr: `bandsox: there is no template "mine"\nhint: it is a snapshot: bandsox snapshot delete ${id}\n`,
    })
    assert.equal((await bandsox(storage, 'snapshot', 'delete', 'mine')).stdout, `Snapshot deleted: ${id}\n`)
  })
})

describe('an error', PARALLEL, () => {
  it('exits with the status of its code, a sentence and a hint', async (t) => {
    const storage = await storageWith(t)
    for (const args of [
      ['vm', 'show', 'nope'],
      ['exec', 'nope', 'true'],
    ]) {
      const { status, stdout, stderr } = await bandsox(storage, ...args)
      assert.deepEqual(
        { status, stdout, stderr },
        {
          status: 66,
          stdout: '',
          stderr: 'bandsox: there is no sandbox "nope"\nhint: see what there is: bandsox vm list\n',
        },
        args.join(' '),
      )
    }
  })

  it('is JSON for a program, wherever --json stands', async (t) => {
    const storage = await storageWith(t)
    for (const args of [
      ['--json', 'vm', 'show', 'nope'],
      ['vm', 'show', '--json', 'nope'],
    ]) {
      const { status, stdout, stderr } = await bandsox(storage, ...args)
      assert.equal(status, 66)
      assert.deepEqual(JSON.parse(stderr), {
        detail: 'there is no sandbox "nope"',
        code: 'not-found',
        hint: 'see what there is: bandsox vm list',
      })
      assert.equal(stdout, '')
    }
  })

  it('of an option out of its bounds names it, and makes nothing', async (t) => {
    const storage = await storageWith(t)
    for (const [args, message] of [
      [['--mem', '1'], /^bandsox: memoryMib: 1 is not allowed; it must be an integer from 64 to 1048576\n/],
      [['--name', '../up'], /name: "..\/up"/],
    ] as const) {
      const { status, stderr } = await bandsox(storage, 'create', 'bandsox/base', ...args)
      assert.equal(status, 64)
      assert.match(stderr, message)
    }
    assert.deepEqual(await readdir(path.join(storage, 'vms')), [])
  })

  it('of a terminal where there is none comes before anything is made, and says how to do without', async (t) => {
    const storage = path.join(await temporaryFolder(t), 'storage')
    for (const [args, hint] of [
      [['exec', '-it', 'web', 'sh'], 'leave out -t'],
      [['run', '-t', 'bandsox/base'], 'leave out -t'],
      [['terminal', 'web'], 'run it without one: bandsox exec VM -- COMMAND'],
    ] as const) {
      const { status, stdout, stderr } = await bandsox(storage, ...args)
      assert.deepEqual(
        { status, stdout, stderr },
        {
          status: 64,
          stdout: '',
          stderr: `bandsox: cannot give the command a terminal: standard input is no terminal\nhint: ${hint}\n`,
        },
      )
      const json = await bandsox(storage, '--json', ...args)
      assert.equal(json.status, 64)
      assert.match(json.stderr, /"cannot give the command a terminal: what it shows is no JSON","code":"bad-request"/)
    }
  })

  it('of a sandbox in the wrong state says which it needs', async (t) => {
    const storage = await storageWith(t, { name: 'web' })
    const { status, stderr } = await bandsox(storage, 'exec', 'web', 'true')
    assert.equal(status, 75)
    assert.match(stderr, /^bandsox: cannot exec sandbox sbx_aaaaaaaaaa: it is stopped; exec needs: running\nhint: /)
  })

  it('of an ambiguous name exits as a mistake, and deletes nothing', async (t) => {
    const folder = await storageWith(t, { id: 'sbx_aaaaaaaaaa' }, { id: 'sbx_aabbbbbbbb' })
    const { status, stderr } = await bandsox(folder, 'vm', 'delete', 'aa')
    assert.equal(status, 64)
    assert.match(stderr, /"aa" means 2 sandboxes: sbx_aaaaaaaaaa \(stopped\), sbx_aabbbbbbbb \(stopped\)/)
    assert.equal((await readdir(path.join(folder, 'vms'))).length, 2)
  })
})

describe('the command', PARALLEL, () => {
  it('lists what there is, for people and for programs', async (t) => {
    const empty = await storageWith(t)
    assert.deepEqual(await bandsox(empty, 'vm', 'list'), { status: 0, stdout: 'No VMs found.\n', stderr: '' })
    assert.equal((await bandsox(empty, '--json', 'vm', 'list')).stdout, '[]\n')
    const storage = await storageWith(t, { name: 'web' })
    const { stdout } = await bandsox(storage, 'vm', 'ls')
    assert.match(stdout, /^NAME +STATUS +ID/)
    assert.match(stdout, /web +stopped +sbx_aaaaaaaaaa +bandsox\/base/)
    assert.match(stdout, /Total: 1 VM\(s\)\n$/)
    const [info] = JSON.parse((await bandsox(storage, 'vm', 'list', '--json')).stdout) as Record<string, unknown>[]
    assert.deepEqual([info?.['id'], info?.['name'], info?.['vsock']], ['sbx_aaaaaaaaaa', 'web', null])
  })

  it('shows, prints the console of, and deletes a sandbox that is stopped', async (t) => {
    const storage = await storageWith(t, { name: 'web' })
    await writeFile(path.join(storage, 'vms', 'sbx_aaaaaaaaaa', 'console.log'), 'hello from the guest\n')
    assert.match((await bandsox(storage, 'vm', 'show', 'web')).stdout, /^id +sbx_aaaaaaaaaa\n/)
    assert.equal((await bandsox(storage, 'logs', 'web')).stdout, 'hello from the guest\n')
    assert.equal((await bandsox(storage, '--json', 'logs', 'web')).stdout, '{"console":"hello from the guest\\n"}\n')
    assert.deepEqual(await bandsox(storage, 'vm', 'rm', 'web'), {
      status: 0,
      stdout: 'VM deleted: sbx_aaaaaaaaaa\n',
      stderr: '',
    })
    assert.deepEqual(await readdir(path.join(storage, 'vms')), [])
  })

  it('says its version and its help with status 0', async (t) => {
    const storage = path.join(await temporaryFolder(t), 'storage')
    assert.match((await bandsox(storage, '--version')).stdout, /^\d+\.\d+\.\d+\n$/)
    const help = await bandsox(storage, 'create', '--help')
    assert.equal(help.status, 0)
    for (const word of ['--mem <MiB>', '--vsock <mode>', '--storage <folder>'])
      assert.ok(help.stdout.includes(word), word)
  })

  it('logs in UTC and ISO 8601, from the level that is asked for', async (t) => {
    const storage = await storageWith(t, { name: 'web' })
    const { stderr } = await bandsox(storage, '--log-level', 'info', 'vm', 'rm', 'web')
    assert.match(stderr, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO deleted sbx_aaaaaaaaaa\n$/)
  })

  it('lists by filters, renames, labels and describes', async (t) => {
    const storage = await storageWith(t, { id: 'sbx_aaaaaaaaaa', name: 'web' }, { id: 'sbx_bbbbbbbbbb', name: 'db' })
    assert.equal((await bandsox(storage, 'vm', 'label', 'web', 'env=prod', 'zone=a')).stdout, 'env=prod\nzone=a\n')
    assert.equal((await bandsox(storage, 'vm', 'label', 'web', 'zone-')).stdout, 'env=prod\n')
    assert.equal((await bandsox(storage, 'list', '-q', '-l', 'env=prod')).stdout, 'sbx_aaaaaaaaaa\n')
    assert.equal((await bandsox(storage, 'list', '-q', '--state', 'running')).stdout, '')
    await bandsox(storage, 'vm', 'update', 'db', '--metadata', '{"team":"blue"}', '--mem', '512')
    assert.equal((await bandsox(storage, 'list', '-q', '--metadata', 'team=blue')).stdout, 'sbx_bbbbbbbbbb\n')
    const lifted = await bandsox(storage, '--json', 'vm', 'update', 'db', '--disk-rate', 'none', '--disk-iops', 'none')
    const { limits } = JSON.parse(lifted.stdout) as { limits: unknown }
    assert.deepEqual(limits, { cpus: null, diskBytesPerSecond: null, diskOperationsPerSecond: null })
    const pollution = await bandsox(storage, 'vm', 'label', 'db', '__proto__=1')
    assert.deepEqual([pollution.status, /label: "__proto__" is not allowed/.test(pollution.stderr)], [64, true])
    assert.equal((await bandsox(storage, 'vm', 'rename', 'db', 'data')).stdout, 'VM renamed: sbx_bbbbbbbbbb (data)\n')
    const taken = await bandsox(storage, 'vm', 'rename', 'data', 'web', '--unique')
    assert.deepEqual([taken.status, /web is taken by sandbox sbx_aaaaaaaaaa/.test(taken.stderr)], [75, true])
    const info = JSON.parse((await bandsox(storage, '--json', 'vm', 'show', 'data')).stdout) as Record<string, unknown>
    assert.deepEqual([info['memoryMib'], info['metadata'], info['name']], [512, { team: 'blue' }, 'data'])
  })

  it('shows CIDs and ports in the shape that is known, and resets them', async (t) => {
    const storage = await storageWith(t, { name: 'web' })
    const { stdout } = await bandsox(storage, '--json', 'vsock', 'list')
    assert.deepEqual(JSON.parse(stdout), {
      cid_allocator: { free_cids: [], next_cid: 3 },
      port_allocator: { next_port: 9000, used_ports: [] },
      owners: [],
    })
    assert.match(
      (await bandsox(storage, 'vsock', 'list')).stdout,
      /No CIDs or ports are held\.\nnext CID: 3; next port: 9000/,
    )
    assert.equal((await bandsox(storage, 'vsock', 'reset')).status, 0)
  })

  it('does not keep others from their sandboxes when one of several is not there', async (t) => {
    const storage = await storageWith(t, { id: 'sbx_aaaaaaaaaa', name: 'web' }, { id: 'sbx_bbbbbbbbbb', name: 'db' })
    const { status, stdout, stderr } = await bandsox(storage, 'vm', 'rm', 'nobody', 'web', 'db')
    assert.equal(status, 66)
    assert.equal(stdout, 'VM deleted: sbx_aaaaaaaaaa\nVM deleted: sbx_bbbbbbbbbb\n')
    assert.match(stderr, /there is no sandbox "nobody"/)
  })

  it('waits for a state, and says when it will not come', async (t) => {
    const storage = await storageWith(t, { name: 'web' })
    assert.equal((await bandsox(storage, 'vm', 'wait', 'web')).stdout, 'stopped\n')
    const late = await bandsox(storage, 'vm', 'wait', 'web', '--for', 'running', '--timeout', '200ms')
    assert.deepEqual([late.status, /is stopped and not running after 200 ms/.test(late.stderr)], [124, true])
  })

  it('says what the storage takes and what the host is, and removes what is asked for', async (t) => {
    const storage = await storageWith(t, { id: 'sbx_aaaaaaaaaa', name: 'web' })
    await writeFile(path.join(storage, 'vms/sbx_aaaaaaaaaa/overlay.ext4'), Buffer.alloc(1_000_000, 1))
    const usage = JSON.parse((await bandsox(storage, '--json', 'system', 'df')).stdout) as Record<
      string,
      { count: number }
    >
    assert.deepEqual([usage['sandboxes']?.count, usage['images']?.count], [1, 0])
    assert.match((await bandsox(storage, 'system', 'df')).stdout, /VMs +1 +9\d\d\.\d KiB +9\d\d\.\d KiB of 1/)
    assert.match((await bandsox(storage, 'system', 'info')).stdout, /^storage .*\n.*^VMs +1 stopped$/ms)
    const dry = await bandsox(storage, 'system', 'prune', '--stopped', '--dry-run')
    assert.equal(dry.stdout, 'VM would be deleted: sbx_aaaaaaaaaa (stopped)\n1 VM would be deleted\n')
    assert.deepEqual(await readdir(path.join(storage, 'vms')), ['sbx_aaaaaaaaaa'])
    assert.match(
      (await bandsox(storage, 'system', 'prune', '--stopped')).stdout,
      /^VM deleted: sbx_aaaaaaaaaa \(stopped\)\nremoved 1 VM and 0 images/,
    )
    assert.deepEqual(await readdir(path.join(storage, 'vms')), [])
  })

  it('cleans up, and says before what it does; looks only, when it is told to', async (t) => {
    const storage = await storageWith(t)
    const stranger = path.join(storage, 'vms/sbx_bbbbbbbbbb')
    await mkdir(stranger)
    const line = `${stranger}: sandbox sbx_bbbbbbbbbb is not known: end what runs in it, and remove it`
    assert.equal((await bandsox(storage, 'cleanup', '--dry-run')).stdout, `${line}\n1 thing to do\n`)
    const doctor = JSON.parse((await bandsox(storage, '--json', 'doctor')).stdout) as { found: { subject: string }[] }
    assert.deepEqual(
      doctor.found.map(({ subject }) => subject),
      [stranger],
    )
    assert.deepEqual(await readdir(path.join(storage, 'vms')), ['sbx_bbbbbbbbbb'])
    const fixed = (await bandsox(storage, 'doctor', '--fix')).stdout
    assert.ok(fixed.includes(`${line}\nall of these are done`), fixed)
    assert.deepEqual(await readdir(path.join(storage, 'vms')), [])
    assert.equal((await bandsox(storage, 'cleanup')).stdout, 'nothing to clean up\n')
    assert.equal((await bandsox(storage, 'cleanup', '--forget', 'nobody')).status, 66)
  })

  it('prints what has happened', async (t) => {
    const storage = await storageWith(t, { name: 'web' })
    await bandsox(storage, 'vm', 'rename', 'web', 'db')
    assert.match(
      (await bandsox(storage, 'events')).stdout,
      /^\S+Z sbx_aaaaaaaaaa web created\n\S+Z sbx_aaaaaaaaaa db renamed\n$/,
    )
    const [created] = (await bandsox(storage, '--json', 'events', 'db')).stdout.split('\n')
    assert.equal((JSON.parse(created ?? '') as { kind: string }).kind, 'created')
  })

  it('refuses a level of logging that is none, wherever it is given', async (t) => {
    const storage = await storageWith(t)
    assert.match(
      (await bandsox(storage, '--log-level', 'loud', 'vm', 'list')).stderr,
      /Allowed choices are debug, info, warn, error/,
    )
  })
})
