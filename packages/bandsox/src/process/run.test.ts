import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { Readable } from 'node:stream'
import { describe, it } from 'node:test'
import { openDescriptors } from '../testing/descriptors.js'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { identify } from './identity.js'
import { runCommand } from './run.js'

const sh = (script: string, ...args: string[]) => ['/bin/sh', '-c', script, 'sh', ...args]

/** The pid that a script wrote, as soon as it is whole. */
async function pidIn(file: string): Promise<number> {
  for (;;) {
    const text = await readFile(file, 'utf8').catch(() => '')
    if (text.endsWith('\n')) return Number(text)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

async function ended(pid: number): Promise<void> {
  while ((await identify(pid)) !== undefined) await new Promise((resolve) => setImmediate(resolve))
}

describe('a host command', () => {
  it('gives back what it printed', async () => {
    assert.deepEqual(await runCommand(sh('echo out; echo err >&2')), { stdout: 'out\n', stderr: 'err\n' })
  })

  it('gets its arguments as they are, its folder, and no environment but what it is given', async (t) => {
    const folder = await temporaryFolder(t)
    const { stdout } = await runCommand(sh('echo "$1"; pwd; echo "$A"', '$(id) ; "x"'), {
      cwd: folder,
      env: { A: 'b' },
    })
    assert.equal(stdout, `$(id) ; "x"\n${folder}\nb\n`)
  })

  it('that fails says how, and the end of what it printed', async () => {
    await assert.rejects(
      runCommand(sh('seq 1 9 >&2; exit 3')),
      hasCode('command-failed', /\/bin\/sh -c exited with 3: 5\n6\n7\n8\n9$/),
    )
    await assert.rejects(
      runCommand(sh('kill -9 $$')),
      hasCode('command-failed', /ended by SIGKILL: \(it printed nothing\)/),
    )
    await assert.rejects(runCommand(sh('echo only; exit 1')), hasCode('command-failed', /only/))
  })

  it('that fails is quoted as its caller wants', async () => {
    const quote = (stdout: string, stderr: string) => `${stdout.length} and ${stderr}`
    await assert.rejects(
      runCommand(sh('echo secret; echo why >&2; exit 2'), { quote }),
      hasCode('command-failed', /exited with 2: 7 and why$/),
    )
    await assert.rejects(
      runCommand(sh('echo x; exit 2'), { quote: () => '' }),
      hasCode('command-failed', /\(it printed nothing\)$/),
    )
  })

  it('that is not installed, or cannot be started, says so', async (t) => {
    await assert.rejects(
      runCommand(['no-such-program-here']),
      hasCode('host-missing', /no-such-program-here is not installed/),
    )
    await assert.rejects(runCommand(['no-such-program-here'], { input: 'x' }), hasCode('host-missing'))
    await assert.rejects(runCommand([await temporaryFolder(t)]), hasCode('command-failed', /cannot start/))
  })

  it('is fed its input, whether it reads all of it or none', async () => {
    assert.equal((await runCommand(['cat'], { input: 'some text' })).stdout, 'some text')
    assert.equal(
      (
        await runCommand(['wc', '-c'], {
          input: Readable.from(Array.from({ length: 100 }, () => Buffer.alloc(10_000))),
        })
      ).stdout.trim(),
      '1000000',
    )
    const endless = new Readable({
      read() {
        this.push(Buffer.alloc(65_536))
      },
    })
    assert.equal((await runCommand(sh('exec 0<&-; echo done'), { input: endless })).stdout, 'done\n')
    assert.equal(endless.destroyed, true)
  })

  it('that is aborted is killed with all its children', async (t) => {
    const file = path.join(await temporaryFolder(t), 'pid')
    const reason = new Error('enough')
    const controller = new AbortController()
    const running = runCommand(sh('sleep 60 & echo $! > "$1.new"; mv "$1.new" "$1"; wait', file), {
      signal: controller.signal,
    })
    running.catch(() => undefined)
    const pid = await pidIn(file)
    controller.abort(reason)
    await assert.rejects(running, (error) => error === reason)
    await ended(pid)
  })

  it('that has ended and left a child with its outputs is aborted as well', async (t) => {
    const file = path.join(await temporaryFolder(t), 'pid')
    const controller = new AbortController()
    const script = 'echo $$ > "$1.shell"; sleep 60 & echo $! > "$1.new"; mv "$1.new" "$1"'
    const running = runCommand(sh(script, file), { signal: controller.signal })
    running.catch(() => undefined)
    const pid = await pidIn(file)
    await ended(await pidIn(`${file}.shell`))
    for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve)) // until we have reaped it
    controller.abort(new Error('enough'))
    await assert.rejects(running, /enough/)
    await ended(pid)
  })

  it('that is aborted before it begins does not begin', async (t) => {
    const file = path.join(await temporaryFolder(t), 'made')
    await assert.rejects(runCommand(['touch', file], { signal: AbortSignal.abort(new Error('enough')) }), /enough/)
    await assert.rejects(readFile(file), { code: 'ENOENT' })
  })

  it('that takes too long is killed, and that is no defect', async () => {
    await assert.rejects(
      runCommand(['sleep', '60'], { timeoutMs: 50 }),
      hasCode('timeout', /sleep did not end within 50 ms/),
    )
  })

  it('that prints without end is killed', async () => {
    await assert.rejects(runCommand(['yes']), hasCode('command-failed', /yes printed more than 4194304 bytes/))
  })

  it('leaves no listener on the signal, and no descriptor', async () => {
    const controller = new AbortController()
    await runCommand(['true'], { signal: controller.signal })
    const before = await openDescriptors()
    for (let round = 0; round < 10; round++) await runCommand(['cat'], { input: 'x', signal: controller.signal })
    assert.deepEqual(await openDescriptors(), before)
    controller.abort() // kills nobody
  })
})
