/** Commands in a real guest: output whole, ends true, input and cancellation, at any pace. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, type CollectedOutput, openBandSox, type Sandbox } from 'bandsox'
import { randomBytes } from './support/random.js'
import { boundedOrFull } from './support/scale.js'
import { type TestStorage, temporaryStorage } from './support/storage.js'

let storage: TestStorage
let sandbox: Sandbox

before(async () => {
  storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  sandbox = await bandsox.create('bandsox/base', { env: { OF_SANDBOX: 'sandbox', BOTH: 'sandbox' } })
})

after(async () => {
  await sandbox?.[Symbol.asyncDispose]()
  await storage?.assertNothingLeft()
  await storage?.[Symbol.asyncDispose]()
})

const run = (command: string | string[], options?: Parameters<Sandbox['exec']>[1]): Promise<CollectedOutput> =>
  sandbox.exec(command, options).collect()

/** What a process in the guest is called, if one whose command line holds the text still runs. */
const runningInGuest = async (text: string): Promise<string> =>
  (
    await run(
      `for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -F '${text}' | grep -v grep; done; true`,
    )
  ).stdout.trim()

const commands = boundedOrFull(200, 5_000)

test(`${commands} short commands in a row lose nothing of their output`, async () => {
  for (let index = 0; index < commands; index++) {
    const lines = (index % 7) + 1
    const { stdout, stderr, exitCode } = await run([
      'sh',
      '-c',
      `i=0; while [ $i -lt ${lines} ]; do echo "line $i of ${index}"; i=$((i+1)); done; echo done >&2`,
    ])
    const expected = Array.from({ length: lines }, (_, line) => `line ${line} of ${index}\n`).join('')
    assert.deepEqual({ stdout, stderr, exitCode }, { stdout: expected, stderr: 'done\n', exitCode: 0 })
  }
})

test('exit statuses and signals arrive as they were', async () => {
  assert.equal((await run(['sh', '-c', 'exit 0'])).exitCode, 0)
  assert.equal((await run(['sh', '-c', 'exit 7'])).exitCode, 7)
  assert.equal((await run(['sh', '-c', 'exit 255'])).exitCode, 255)
  const killed = await run(['sh', '-c', 'kill -9 $$'])
  assert.deepEqual({ exitCode: killed.exitCode, signal: killed.signal }, { exitCode: null, signal: 'SIGKILL' })
})

test('a list is not seen by a shell, a string is', async () => {
  assert.equal((await run(['echo', '$HOME', '*', 'a  b'])).stdout, '$HOME * a  b\n')
  assert.equal((await run('echo "$HOME" | tr a-z A-Z')).stdout, '/ROOT\n')
})

test('environment, folder and user are those that were asked for', async () => {
  const { stdout } = await run('echo $OF_SANDBOX $BOTH $ONLY_CALL; pwd; id -un; id -gn; echo $HOME', {
    env: { BOTH: 'call', ONLY_CALL: 'yes' },
    cwd: '/tmp',
    user: 'sandbox',
  })
  assert.equal(stdout, 'sandbox call yes\n/tmp\nsandbox\nsandbox\n/home/sandbox\n')
  assert.equal((await run('id -u; id -g', { user: '12345:54321' })).stdout, '12345\n54321\n')
})

test('standard input of any size reaches the command, and its end does', async () => {
  const input = randomBytes(1_500_000, 2)
  async function* pieces() {
    for (let offset = 0; offset < input.length; offset += 100_000) yield input.subarray(offset, offset + 100_000)
  }
  const { stdout } = await run('wc -c; cat | wc -c', { input: pieces() })
  assert.equal(stdout, '1500000\n0\n')
  assert.equal((await run(['cat'], { input: 'a few words' })).stdout, 'a few words')
  assert.equal((await run(['cat'])).stdout, '')
})

test('a command that does not read its input can still be ended', async () => {
  const job = sandbox.exec(['sleep', '600'], { input: randomBytes(4_000_000, 3).toString('latin1') })
  setTimeout(() => job.kill('SIGKILL'), 300)
  assert.equal((await job.wait()).signal, 'SIGKILL')
})

test('output of 20 MB arrives whole at a slow reader, who slows the command', async () => {
  const job = sandbox.exec('i=0; while [ $i -lt 20 ]; do head -c 1000000 /dev/zero; i=$((i+1)); done')
  let size = 0
  let reads = 0
  for await (const { data } of job.output) {
    size += data.length
    if (++reads % 50 === 0) await delay(5)
  }
  assert.equal(size, 20_000_000)
  assert.equal((await job.wait()).exitCode, 0)
})

test('bytes that are no text pass unchanged', async () => {
  const parts: Uint8Array[] = []
  for await (const { data } of sandbox.exec(['printf', '\\000\\377\\200\\012']).output) parts.push(data)
  assert.deepEqual(Buffer.concat(parts), Buffer.from([0, 0xff, 0x80, 0x0a]))
})

test('a child left behind does not hold the call', async () => {
  const startedAt = performance.now()
  const { stdout, exitCode } = await run('sleep 30 & echo started')
  assert.deepEqual({ stdout, exitCode }, { stdout: 'started\n', exitCode: 0 })
  assert.ok(performance.now() - startedAt < 10_000)
})

test('a time limit kills the whole process group, and says so', async () => {
  const result = await run('sleep 7771 | sleep 7772', { timeoutMs: 500 })
  assert.deepEqual({ signal: result.signal, timedOut: result.timedOut }, { signal: 'SIGKILL', timedOut: true })
  assert.equal(await runningInGuest('sleep 777'), '')
})

test('abort kills the whole process group and rejects with its reason', async () => {
  const controller = new AbortController()
  const reason = new Error('changed my mind')
  const job = sandbox.exec('sleep 8881 & echo ready; sleep 8882', { signal: controller.signal })
  await assert.rejects(async () => {
    for await (const _ of job.output) controller.abort(reason)
  }, reason)
  await assert.rejects(job.wait(), reason)
  assert.equal(await runningInGuest('sleep 888'), '')
})

test('leaving the output early kills the command', async () => {
  for await (const _ of sandbox.exec(['yes', 'leave-early']).output) break
  await delay(200)
  assert.equal(await runningInGuest('yes leave-early'), '')
})

test('what cannot be started is said by name, at once', async () => {
  const cases: [string[], Parameters<Sandbox['exec']>[1], BandSoxError['code']][] = [
    [['no-such-program'], {}, 'command-not-found'],
    [['/etc/passwd'], {}, 'command-not-executable'],
    [['true'], { cwd: '/no/such/folder' }, 'bad-request'],
    [['true'], { user: 'nobody-of-this-name' }, 'bad-request'],
  ]
  for (const [command, options, code] of cases) {
    const startedAt = performance.now()
    await assert.rejects(
      run(command, options),
      (error) => error instanceof BandSoxError && error.code === code,
      command.join(' '),
    )
    assert.ok(performance.now() - startedAt < 2_000)
  }
})

test('output above the limit ends in an error that says so', async () => {
  await assert.rejects(
    sandbox.exec(['yes']).collect({ maxOutputBytes: 100_000 }),
    (error) => error instanceof BandSoxError && error.code === 'output-too-large',
  )
})

test('twenty commands at once do not mix their outputs', async () => {
  const results = await Promise.all(
    Array.from({ length: 20 }, (_, index) => run(`sleep 0.1; seq ${index}000 ${index}100 | cat`)),
  )
  for (const [index, { stdout }] of results.entries()) {
    assert.equal(stdout, Array.from({ length: 101 }, (_, line) => `${Number(`${index}000`) + line}\n`).join(''))
  }
})
