/** Transfers and commands against the agent itself, over connections that are cut again and again. */
import assert from 'node:assert/strict'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, type LinkKind } from '@bandsox/sdk'
import { hasCode } from '../testing/errors.js'
import { seededRandom } from '../testing/random.js'
import type { Agent } from './agent.js'
import { type DownloadSink, download } from './download.js'
import { startJob } from './job.js'
import { type CuttableGuest, cuttableGuest, isThere } from './testing/cuttable-guest.js'
import { upload } from './upload.js'
import { bytesSource, streamSource } from './upload-source.js'

const content = Buffer.alloc(6_000_000, seededRandom(3).bytes(65_537))
const seed = Number(process.env['BANDSOX_CHAOS_SEED'] ?? 11)

class Memory implements DownloadSink {
  readonly parts: Buffer[] = []
  committed = false
  async begin(): Promise<void> {
    assert.equal(this.parts.length, 0)
  }
  async write(batch: Buffer[]): Promise<void> {
    for (const part of batch) this.parts.push(Buffer.from(part))
  }
  async commit(): Promise<void> {
    this.committed = true
  }
}

/** Both ways are cut, each connection after some hundred KB. */
function cutAllTheTime({ vsock, serial }: CuttableGuest, bytes: number): void {
  vsock.cutAfter(bytes)
  serial.cutAfter(bytes + 77_777)
}

/** The guest's, which is how much may be on its way. */
const WINDOW_BYTES = 4 * 1024 * 1024

const carried = ({ vsock, serial }: CuttableGuest) => ({
  bytes: vsock.bytes + serial.bytes,
  connections: vsock.connections + serial.connections,
})

/** On a busy host it may take a while until a link that failed is looked at again. */
async function untilTaken(agent: Agent, kind: LinkKind): Promise<void> {
  while ((await agent.use(async ({ link }) => link)) !== kind) await delay(10)
}

async function* inBlocks(bytes: Buffer, size: number): AsyncGenerator<Uint8Array> {
  for (let offset = 0; offset < bytes.length; offset += size) yield bytes.subarray(offset, offset + size)
}

describe('an upload', () => {
  it('goes on over the serial link from where the guest is, wherever vsock is cut', async (t) => {
    const g = await cuttableGuest(t)
    const random = seededRandom(seed)
    for (let round = 0; round < 12; round++) {
      g.vsock.cutAfter(undefined)
      await untilTaken(g.agent, 'vsock')
      g.vsock.cutAfter(random.below(content.length))
      const file = path.join(g.folder, `up${round}`)
      const uploading = upload(g.agent, file, bytesSource(content))
      const before = carried(g)
      const result = await uploading
      assert.ok((await readFile(file)).equals(content))
      assert.equal(result.sizeBytes, content.length)
      const now = carried(g)
      // Of what was on its way when a link broke, nobody knows how much had arrived; on a busy host a link may have been changed more than once.
      const most = content.length + (now.connections - before.connections) * WINDOW_BYTES + 65_536
      assert.ok(now.bytes - before.bytes < most, `${now.bytes - before.bytes} bytes: what had arrived was sent again`)
    }
    assert.ok(!(await readdir(g.folder)).some((name) => name.startsWith('.')), 'no temporary file is left')
  })

  it('that is cut all the time still completes, from a stream as well', async (t) => {
    const g = await cuttableGuest(t)
    cutAllTheTime(g, 700_000)
    const file = path.join(g.folder, 'up')
    await upload(g.agent, file, bytesSource(content))
    assert.ok((await readFile(file)).equals(content))
    const stream = path.join(g.folder, 'stream')
    await upload(g.agent, stream, streamSource(inBlocks(content, 33_333)))
    assert.ok((await readFile(stream)).equals(content))
    assert.ok(g.vsock.connections + g.serial.connections > 10)
  })

  it('is over the serial link at once when vsock is dead, and says so', async (t) => {
    const g = await cuttableGuest(t)
    g.vsock.refuse(true)
    const { link } = await upload(g.agent, path.join(g.folder, 'f'), bytesSource(content))
    assert.equal(link, 'serial')
  })

  it('changes back to vsock when that works again', async (t) => {
    const g = await cuttableGuest(t)
    g.vsock.refuse(true)
    async function* slow(): AsyncGenerator<Uint8Array> {
      for (let offset = 0; offset < content.length; offset += 100_000) {
        if (offset === 1_000_000) g.vsock.refuse(false)
        await new Promise((resolve) => setTimeout(resolve, 20))
        yield content.subarray(offset, offset + 100_000)
      }
    }
    const file = path.join(g.folder, 'f')
    const { link } = await upload(g.agent, file, streamSource(slow()))
    assert.equal(link, 'vsock')
    assert.ok((await readFile(file)).equals(content))
  })
})

describe('an upload that is given up', () => {
  const isEmpty = async (folder: string) => {
    while ((await readdir(folder)).length > 0) await new Promise((resolve) => setTimeout(resolve, 10))
  }

  it('by its signal leaves no temporary file, though the guest would wait for us', async (t) => {
    const g = await cuttableGuest(t)
    const controller = new AbortController()
    async function* source(): AsyncGenerator<Uint8Array> {
      for (let blocks = 0; ; blocks++) {
        if (blocks === 3) controller.abort(new Error('enough'))
        yield Buffer.alloc(100_000)
      }
    }
    const options = { signal: controller.signal }
    await assert.rejects(upload(g.agent, path.join(g.folder, 'f'), streamSource(source()), options), /enough/)
    await isEmpty(g.folder)
  })

  it('by its source leaves none either', async (t) => {
    const g = await cuttableGuest(t)
    async function* source(): AsyncGenerator<Uint8Array> {
      yield Buffer.alloc(1_000_000)
      throw new Error('the disk is gone')
    }
    await assert.rejects(upload(g.agent, path.join(g.folder, 'f'), streamSource(source())), /the disk is gone/)
    await isEmpty(g.folder)
  })

  it('hears its signal while its source is silent, and its connection’s end', async (t) => {
    const g = await cuttableGuest(t)
    const controller = new AbortController()
    let goOn: (() => void) | undefined
    async function* silent(): AsyncGenerator<Uint8Array> {
      yield Buffer.from('some')
      await new Promise<void>((resolve) => {
        goOn = resolve
      })
      yield Buffer.from('more')
    }
    const options = { signal: controller.signal }
    const file = path.join(g.folder, 'f')
    const uploading = upload(g.agent, file, streamSource(silent()), options)
    while (goOn === undefined) await new Promise((resolve) => setTimeout(resolve, 5))
    g.vsock.refuse(true)
    while (g.serial.connections === 0) await new Promise((resolve) => setTimeout(resolve, 5)) // it does not wait for the source
    goOn()
    await uploading
    assert.equal(await readFile(file, 'utf8'), 'somemore')

    goOn = undefined
    const aborted = upload(g.agent, file, streamSource(silent()), options)
    while (goOn === undefined) await new Promise((resolve) => setTimeout(resolve, 5))
    controller.abort(new Error('enough'))
    await assert.rejects(aborted, /enough/)
  })
})

describe('a download', () => {
  it('goes on over the serial link from where it was, wherever vsock is cut', async (t) => {
    const g = await cuttableGuest(t)
    const random = seededRandom(seed + 1)
    const file = path.join(g.folder, 'f')
    await writeFile(file, content)
    for (let round = 0; round < 12; round++) {
      g.vsock.refuse(false)
      g.vsock.cutAfter(random.below(content.length))
      const sink = new Memory()
      await download(g.agent, file, sink)
      assert.ok(Buffer.concat(sink.parts).equals(content))
      assert.ok(sink.committed)
    }
  })

  it('that is cut all the time still completes', async (t) => {
    const g = await cuttableGuest(t)
    const file = path.join(g.folder, 'f')
    await writeFile(file, content)
    cutAllTheTime(g, 500_000)
    const sink = new Memory()
    await download(g.agent, file, sink)
    assert.ok(Buffer.concat(sink.parts).equals(content))
    assert.ok(g.vsock.connections + g.serial.connections > 8)
  })

  for (const link of ['vsock', 'serial'] satisfies LinkKind[]) {
    it(`of a file that is not there fails at once over ${link}`, async (t) => {
      const g = await cuttableGuest(t)
      if (link === 'serial') g.vsock.refuse(true)
      const missing = download(g.agent, path.join(g.folder, 'none'), new Memory())
      await assert.rejects(missing, hasCode('file-not-found'))
      assert.equal(g.serial.connections, link === 'serial' ? 1 : 0)
    })
  }
})

describe('a command', () => {
  const script =
    'echo run >> runs; i=0; while [ $i -lt 40000 ]; do echo "line $i of the output"; i=$((i+1)); done; exit 7'
  const expected = Buffer.from(Array.from({ length: 40_000 }, (_, i) => `line ${i} of the output\n`).join(''))

  it('loses no byte of its output, wherever it is cut, keeps its status, and runs once', async (t) => {
    const g = await cuttableGuest(t)
    cutAllTheTime(g, 90_000)
    const job = startJob(async () => g.agent, { shell: script, cwd: g.folder })
    const parts: Buffer[] = []
    for await (const { data } of job.output) parts.push(Buffer.from(data))
    assert.ok(Buffer.concat(parts).equals(expected))
    assert.equal((await job.wait()).exitCode, 7)
    assert.equal(await readFile(path.join(g.folder, 'runs'), 'utf8'), 'run\n')
    assert.ok(g.vsock.connections + g.serial.connections > 5)
  })

  it('gets every byte of its input, and gives it back, wherever it is cut', async (t) => {
    const g = await cuttableGuest(t)
    cutAllTheTime(g, 300_000)
    const input = content.subarray(0, 2_000_000)
    const job = startJob(async () => g.agent, { argv: ['cat'] }, { input: inBlocks(Buffer.from(input), 10_001) })
    const parts: Buffer[] = []
    for await (const { data } of job.output) parts.push(Buffer.from(data))
    assert.ok(Buffer.concat(parts).equals(input))
    assert.equal((await job.wait()).exitCode, 0)
  })

  it('runs once, wherever its start is cut', async (t) => {
    const g = await cuttableGuest(t)
    for (let bytes = 1; bytes < 600; bytes += 7) {
      g.vsock.cutAfter(bytes)
      const job = startJob(async () => g.agent, { shell: 'echo run >> runs; echo done', cwd: g.folder })
      assert.equal((await job.collect()).stdout, 'done\n', `cut after ${bytes} bytes`)
    }
    const runs = (await readFile(path.join(g.folder, 'runs'), 'utf8')).length / 'run\n'.length
    assert.equal(runs, Math.ceil((600 - 1) / 7))
  })

  it('hears a signal that was sent while it had no connection', async (t) => {
    const g = await cuttableGuest(t)
    const job = startJob(async () => g.agent, { shell: 'trap "exit 9" TERM; echo ready; while :; do sleep 0.05; done' })
    const output = job.output[Symbol.asyncIterator]()
    await output.next()
    g.serial.refuse(true)
    g.vsock.refuse(true)
    job.kill('SIGTERM')
    const rest = output.next()
    g.vsock.refuse(false)
    for (let next = await rest; !next.done; next = await output.next()); // the shell may say that its child was ended
    assert.equal((await job.wait()).exitCode, 9)
  })

  it('that is given up is killed at once, though the guest would wait for us', async (t) => {
    const g = await cuttableGuest(t)
    const controller = new AbortController()
    const options = { signal: controller.signal }
    const job = startJob(async () => g.agent, { shell: 'echo $$; exec sleep 1000' }, options)
    const first = await job.output[Symbol.asyncIterator]().next()
    const pid = Number(Buffer.from(first.value?.data ?? []).toString())
    controller.abort(new Error('enough'))
    await assert.rejects(job.wait(), /enough/)
    while (await isThere(`/proc/${pid}/cwd`)) await new Promise((resolve) => setTimeout(resolve, 10))
  })

  it('gets input in its order though much of it was under way at a break, over a link that takes it in small pieces', async (t) => {
    const g = await cuttableGuest(t)
    g.vsock.refuse(true)
    g.serial.cutAfter(20_000)
    const input = Buffer.from(seededRandom(7).bytes(200_000).toString('hex'))
    async function* source(): AsyncGenerator<Uint8Array> {
      yield input.subarray(0, 130_000)
      yield input.subarray(130_000, 200_000)
      while (g.serial.connections < 3) await new Promise((resolve) => setTimeout(resolve, 5))
      g.serial.cutAfter(undefined)
      yield input.subarray(200_000)
    }
    const job = startJob(async () => g.agent, { shell: 'sleep 1; cat' }, { input: source() })
    assert.equal((await job.collect()).stdout, input.toString())
  })

  it('whose input fails is killed at once', async (t) => {
    const g = await cuttableGuest(t)
    let pid = 0
    async function* source(): AsyncGenerator<Uint8Array> {
      while (pid === 0) await new Promise((resolve) => setTimeout(resolve, 5))
      throw new Error('the disk is gone')
    }
    const job = startJob(async () => g.agent, { shell: 'echo $$; exec sleep 1000' }, { input: source() })
    const reading = async () => {
      for await (const { data } of job.output) pid = Number(Buffer.from(data).toString())
    }
    await assert.rejects(reading(), hasCode('cancelled', /could not be read, so it was killed: the disk is gone/))
    while (await isThere(`/proc/${pid}/cwd`)) await new Promise((resolve) => setTimeout(resolve, 10))
  })

  it('that is quiet finds out that its link has fallen silent, and goes on over the other, with the signal that nobody heard', async (t) => {
    const g = await cuttableGuest(t, { answerTimeoutMs: 700 })
    const quiet = startJob(async () => g.agent, { shell: 'sleep 3; echo done' }).collect()
    const killed = startJob(async () => g.agent, { shell: 'exec sleep 1000' })
    const ended = killed.collect()
    while (g.vsock.open < 2) await new Promise((resolve) => setTimeout(resolve, 5))
    await new Promise((resolve) => setTimeout(resolve, 300)) // both have begun
    g.vsock.stall(true)
    killed.kill('SIGKILL')
    assert.equal((await quiet).stdout, 'done\n')
    assert.deepEqual([(await ended).signal, (await ended).link], ['SIGKILL', 'serial'])
  })

  it('that is quiet for long stays on a link that answers', async (t) => {
    const g = await cuttableGuest(t, { answerTimeoutMs: 300 })
    const { stdout, link } = await startJob(async () => g.agent, { shell: 'sleep 2; echo done' }).collect()
    assert.deepEqual([stdout, link, g.vsock.connections], ['done\n', 'vsock', 1])
  })

  it('goes on over vsock after a pause that left vsock whole', async (t) => {
    const g = await cuttableGuest(t)
    const job = startJob(async () => g.agent, { shell: 'echo begun; sleep 1; echo done' })
    const output: string[] = []
    for await (const { data } of job.output) {
      output.push(Buffer.from(data).toString())
      if (output.length === 1) g.agent.quiesce(new BandSoxError('link-lost', 'it was paused'))
    }
    assert.equal(output.join(''), 'begun\ndone\n')
    assert.equal((await job.wait()).link, 'vsock')
  })

  it('does not outlive the library that has let it go, though that waits for a paused machine', async (t) => {
    const g = await cuttableGuest(t)
    const job = startJob(async () => g.agent, { shell: 'echo $$; exec sleep 1000' })
    const output = job.output[Symbol.asyncIterator]()
    const begun = await output.next()
    assert(begun.done !== true)
    const pid = Number(Buffer.from(begun.value.data).toString())
    t.after(() => void process.kill(pid, 'SIGKILL')) // the job goes on, here on this host
    let isWaiting: () => void = () => undefined
    const waits = new Promise<void>((resolve) => {
      isWaiting = resolve
    })
    g.agent.onLost(async (signal) => {
      isWaiting()
      await new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)))
      return 'unchanged'
    })
    const next = output.next()
    g.agent.quiesce(new BandSoxError('link-lost', 'it was paused'))
    await waits
    g.agent.close()
    await assert.rejects(next, hasCode('link-lost'))
  })
})
