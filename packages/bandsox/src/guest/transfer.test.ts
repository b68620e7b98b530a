/** Uploads and downloads against a stand-in agent, honest and hostile. */
import assert from 'node:assert/strict'
import { open, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import type { Link } from '../link/link.js'
import { hasCode } from '../testing/errors.js'
import { seededRandom } from '../testing/random.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { encodeHeader, HEADER_BYTES } from '../wire/frame.js'
import { Agent } from './agent.js'
import { type DownloadSink, download } from './download.js'
import { agentWith, greet, type HonestGuest, type HostPeer, honest, md5 } from './testing/stand-in-agent.js'
import { upload } from './upload.js'
import { fileBlocks, streamSource } from './upload-source.js'

const content = seededRandom(1).bytes(900_000)
const SMALLEST_WINDOW_BYTES = 65_536
const guestWith = (over: Partial<HonestGuest> = {}): HonestGuest => ({
  files: new Map(),
  chunkBytes: 65_536,
  windowBytes: 4 * 1024 * 1024,
  ...over,
})

async function* blocks(bytes: Buffer, size: number): AsyncGenerator<Uint8Array> {
  for (let offset = 0; offset < bytes.length; offset += size) yield bytes.subarray(offset, offset + size)
}

/** Keeps what comes, and tells what was asked of it. */
class MemorySink implements DownloadSink {
  readonly calls: string[] = []
  readonly parts: Buffer[] = []

  async begin(file: { sizeBytes: number; mode: number }): Promise<void> {
    this.calls.push(`begin ${file.sizeBytes} ${file.mode.toString(8)}`)
  }

  async write(batch: Buffer[]): Promise<void> {
    this.calls.push('write')
    this.parts.push(...batch)
  }

  async commit(): Promise<void> {
    this.calls.push('commit')
  }
}

describe('an upload', () => {
  it('arrives whole, whatever the window, the chunk and the blocks are', async (t) => {
    for (const [windowBytes, chunkBytes, blockBytes] of [
      [SMALLEST_WINDOW_BYTES, 1_024, 1_000_000],
      [SMALLEST_WINDOW_BYTES + 1, 65_536, 50_001],
      [99_999, 7_777, 200_001],
      [16_777_216, 1_048_576, 300_000],
    ] as const) {
      const guest = guestWith({ windowBytes, chunkBytes })
      const { agent, guest: standIn } = await agentWith(t, honest(guest))
      for (const sizeBytes of [content.length, undefined]) {
        const result = await upload(agent, '/f', streamSource(blocks(content, blockBytes), sizeBytes), {
          checksum: 'md5',
        })
        assert.ok(guest.files.get('/f')?.equals(content), `window ${windowBytes}`)
        assert.deepEqual(result.checksum, { algorithm: 'md5', value: md5(content) })
        assert.deepEqual([result.path, result.sizeBytes, result.link], ['/f', content.length, 'vsock'])
      }
      assert.equal(standIn.connections, 1)
    }
  })

  it('may be empty', async (t) => {
    const guest = guestWith()
    const { agent } = await agentWith(t, honest(guest))
    await upload(agent, '/empty', streamSource(blocks(Buffer.alloc(0), 1), 0))
    assert.equal(guest.files.get('/empty')?.length, 0)
  })

  it('asks for what was asked, and reports its progress to the end', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      const request = await host.expect('upload')
      assert.deepEqual(request, {
        ...{ type: 'upload', path: '/f', checksum: 'sha256', size: 3, mode: 0o600, user: 'nobody', makeParents: false },
      })
      host.say({ type: 'error', code: 'no-such-user', message: 'nobody is not known' })
    })
    const options = { checksum: 'sha256', mode: 0o600, user: 'nobody', makeParents: false } as const
    const refused = upload(agent, '/f', streamSource(blocks(Buffer.from('abc'), 3), 3), options)
    await assert.rejects(refused, hasCode('bad-request', /^in the guest: nobody is not known$/))
    const seen: { bytes: number; totalBytes: number | undefined }[] = []
    const other = await agentWith(t, honest(guestWith()))
    const source = streamSource(blocks(content, 100_000), content.length)
    await upload(other.agent, '/f', source, { onProgress: (progress) => void seen.push(progress) })
    assert.deepEqual(seen.at(-1), { bytes: content.length, totalBytes: content.length })
  })

  it('goes over a serial line in frames that the slowest carries before the agent is given up', async (t) => {
    const guest = guestWith()
    const { guest: standIn } = await agentWith(t, honest(guest))
    const frames: number[] = []
    const serial: Link = {
      kind: 'serial',
      async open(signal) {
        const stream = await standIn.link.open(signal)
        const write = stream.write.bind(stream)
        t.mock.method(stream, 'write', (data: Uint8Array, done?: (error?: Error | null) => void) => {
          if (data.length === HEADER_BYTES) frames.push(Buffer.from(data).readUInt32BE(1))
          return write(data, done)
        })
        return stream
      },
    }
    const agent = new Agent([serial])
    t.after(() => agent.close())
    await upload(agent, '/f', streamSource(blocks(content, 300_000), content.length))
    assert.ok(guest.files.get('/f')?.equals(content))
    // At 1 KB/s, before the 30 s in which something must be heard.
    assert.ok(frames.length > 0 && Math.max(...frames) <= 16_384, `frames of ${Math.max(...frames)} bytes`)
  })

  it('that the guest refuses at its end, or in the middle, says why', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('upload')
      host.say({ type: 'ready', chunkBytes: 65_536, windowBytes: SMALLEST_WINDOW_BYTES, offset: 0 })
      await host.next()
      host.say({ type: 'error', code: 'no-space', message: 'the disk is full' })
      await host.closed()
    })
    const full = upload(agent, '/f', streamSource(blocks(content, 100_000)))
    await assert.rejects(full, hasCode('no-space', /the disk is full/))
    await guest.idle()
    const other = await agentWith(t, honest(guestWith()))
    const short = upload(other.agent, '/f', streamSource(blocks(Buffer.from('abc'), 3), 10))
    await assert.rejects(short, hasCode('checksum-mismatch'))
  })

  it('that the guest confirms with another size or checksum has failed', async (t) => {
    for (const answer of [
      { size: 3, checksum: '00000000' },
      { size: 2, checksum: md5(Buffer.from('abc')) },
    ]) {
      const { agent } = await agentWith(t, async (host) => {
        await greet(host)
        await host.expect('upload')
        host.say({ type: 'ready', chunkBytes: 10, windowBytes: SMALLEST_WINDOW_BYTES, offset: 0 })
        await host.next()
        await host.expect('complete')
        host.say({ type: 'complete', ...answer })
      })
      const source = streamSource(blocks(Buffer.from('abc'), 3), 3)
      await assert.rejects(upload(agent, '/f', source), hasCode('checksum-mismatch'))
    }
  })

  it('acknowledged beyond what was sent, or backwards, is a violation', async (t) => {
    for (const [offsets, message] of [
      [[65_536, 32_768], /an ack of 32768 after one of 65536/],
      [[999_999], /an ack of 999999/],
    ] as const) {
      const { agent, guest } = await agentWith(t, async (host) => {
        await greet(host)
        await host.expect('upload')
        host.say({ type: 'ready', chunkBytes: 65_536, windowBytes: SMALLEST_WINDOW_BYTES, offset: 0 })
        for (let received = 0; received < 65_536; ) {
          const frame = await host.next()
          assert.ok(frame?.kind === 'data')
          received += frame.data.length
        }
        host.say(...offsets.map((offset) => ({ type: 'ack' as const, offset })))
        await host.closed()
      })
      // The second `ack` comes when all was sent and only the guest's `complete` is awaited.
      const source = streamSource(blocks(content.subarray(0, 65_537), 65_537))
      await assert.rejects(upload(agent, '/f', source), hasCode('guest-protocol', message))
      await guest.idle()
    }
  })

  it('whose acknowledgement is repeated a thousand times is a violation, a few repeats are not', async (t) => {
    for (const repeats of [1, 1_000]) {
      const { agent } = await agentWith(t, async (host) => {
        await greet(host)
        const { size = 0 } = await host.expect('upload')
        host.say({ type: 'ready', chunkBytes: 65_536, windowBytes: SMALLEST_WINDOW_BYTES, offset: 0 })
        await host.next()
        const { checksum } = await host.expect('complete')
        for (let count = 0; count <= repeats; count++) host.say({ type: 'ack', offset: size })
        host.say({ type: 'complete', size, checksum })
      })
      const uploaded = upload(agent, '/f', streamSource(blocks(Buffer.from('abc'), 3), 3))
      if (repeats === 1) assert.equal((await uploaded).sizeBytes, 3)
      else await assert.rejects(uploaded, hasCode('guest-protocol', /an ack of 3 after one of 3/))
    }
  })

  it('that is never acknowledged sends a window and no more, and is given up after the time limit', async (t) => {
    let received = 0
    const { agent, guest } = await agentWith(
      t,
      async (host) => {
        await greet(host)
        await host.expect('upload')
        host.say({ type: 'ready', chunkBytes: 65_536, windowBytes: SMALLEST_WINDOW_BYTES, offset: 0 })
        for (let frame = await host.next(); frame !== undefined; frame = await host.next()) {
          if (frame.kind === 'data') received += frame.data.length
        }
      },
      { answerTimeoutMs: 80 },
    )
    const source = streamSource(blocks(content, 300_000))
    await assert.rejects(upload(agent, '/f', source), hasCode('guest-silent', /within 80 ms/))
    await guest.idle()
    assert.equal(received, SMALLEST_WINDOW_BYTES)
  })

  it('to a guest that reads nothing is given up after the time limit', async (t) => {
    const { agent, guest } = await agentWith(
      t,
      async (host) => {
        await greet(host)
        await host.expect('upload')
        host.say({ type: 'ready', chunkBytes: 65_536, windowBytes: 16_777_216, offset: 0 })
        host.socket.pause()
      },
      { answerTimeoutMs: 80 },
    )
    const source = streamSource(blocks(Buffer.alloc(8_000_000), 1_000_000))
    await assert.rejects(upload(agent, '/f', source), hasCode('guest-silent'))
    await guest.close()
  })

  it('whose source fails ends with that failure, and closes', async (t) => {
    const cause = new Error('the disk is gone')
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('upload')
      host.say({ type: 'ready', chunkBytes: 65_536, windowBytes: SMALLEST_WINDOW_BYTES, offset: 0 })
      await host.closed()
    })
    async function* torn(): AsyncGenerator<Uint8Array> {
      yield Buffer.from('some')
      throw cause
    }
    await assert.rejects(upload(agent, '/f', streamSource(torn())), (error) => error === cause)
    await guest.idle()
  })

  it('that is aborted rejects with the reason, and ends its source', async (t) => {
    const reason = new Error('enough')
    const controller = new AbortController()
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('upload')
      host.say({ type: 'ready', chunkBytes: 65_536, windowBytes: SMALLEST_WINDOW_BYTES, offset: 0 })
      await host.next()
      controller.abort(reason)
      await host.closed()
    })
    let hasEnded = false
    async function* source(): AsyncGenerator<Uint8Array> {
      try {
        for (;;) yield Buffer.alloc(10_000)
      } finally {
        hasEnded = true
      }
    }
    const aborted = upload(agent, '/f', streamSource(source()), { signal: controller.signal })
    await assert.rejects(aborted, (error) => error === reason)
    await guest.idle()
    assert.ok(hasEnded)
  })
})

describe('the blocks of a host file', () => {
  it('are its content, and do not change while the next one is read', async (t) => {
    const file = path.join(await temporaryFolder(t), 'f')
    const bytes = seededRandom(2).bytes(2_500_000)
    await writeFile(file, bytes)
    const handle = await open(file)
    t.after(() => handle.close())
    const parts: Buffer[] = []
    for await (const block of fileBlocks(handle)) {
      await new Promise((resolve) => setImmediate(resolve))
      parts.push(Buffer.from(block))
    }
    assert.ok(Buffer.concat(parts).equals(bytes))
  })

  it('that cannot be read any more fail where they are awaited, and nowhere else', async (t) => {
    const file = path.join(await temporaryFolder(t), 'f')
    await writeFile(file, Buffer.alloc(3_000_000))
    const handle = await open(file)
    const reading = fileBlocks(handle)
    await reading.next()
    await handle.close()
    await reading.next() // read ahead before the file was closed; the one behind it fails now, while we are busy
    await new Promise((resolve) => setImmediate(resolve))
    await assert.rejects(reading.next(), /closed/)
  })
})

describe('a download', () => {
  it('arrives whole, whatever the window and the chunk are', async (t) => {
    for (const [windowBytes, chunkBytes] of [
      [SMALLEST_WINDOW_BYTES, 1_024],
      [SMALLEST_WINDOW_BYTES, 65_536],
      [SMALLEST_WINDOW_BYTES + 1, 65_536],
      [300_000, 7_777],
      [16_777_216, 1_048_576],
    ] as const) {
      const guest = guestWith({ windowBytes, chunkBytes, files: new Map([['/f', content]]) })
      const { agent, guest: standIn } = await agentWith(t, honest(guest), { answerTimeoutMs: 1_000 })
      for (let round = 0; round < 2; round++) {
        const sink = new MemorySink()
        const result = await download(agent, '/f', sink, { checksum: 'md5' })
        assert.ok(Buffer.concat(sink.parts).equals(content), `window ${windowBytes}`)
        assert.equal(result.checksum.value, md5(content))
        assert.equal(sink.calls[0], `begin ${content.length} 640`)
        assert.equal(sink.calls.at(-1), 'commit')
      }
      assert.equal(standIn.connections, 1)
    }
  })

  it('may be empty', async (t) => {
    const { agent } = await agentWith(t, honest(guestWith({ files: new Map([['/f', Buffer.alloc(0)]]) })))
    const sink = new MemorySink()
    assert.equal((await download(agent, '/f', sink)).sizeBytes, 0)
    assert.deepEqual(sink.calls, ['begin 0 640', 'commit'])
  })

  it('of a file that is not there is refused before the sink is begun', async (t) => {
    const { agent } = await agentWith(t, honest(guestWith()))
    const sink = new MemorySink()
    await assert.rejects(download(agent, '/f', sink), hasCode('file-not-found', /^in the guest: open \/f/))
    assert.deepEqual(sink.calls, [])
  })

  it('in frames of one byte is written in few buffers', async (t) => {
    const { agent } = await agentWith(
      t,
      honest(guestWith({ chunkBytes: 1, files: new Map([['/f', content.subarray(0, 20_000)]]) })),
    )
    const sink = new MemorySink()
    await download(agent, '/f', sink)
    assert.ok(Buffer.concat(sink.parts).equals(content.subarray(0, 20_000)))
    assert.ok(sink.parts.length < 5)
  })

  const ready = {
    type: 'ready',
    chunkBytes: 65_536,
    windowBytes: SMALLEST_WINDOW_BYTES,
    offset: 0,
    mode: 0o644,
    mtimeMs: 0,
  } as const
  const hostile: [string, (host: HostPeer) => void, Parameters<typeof hasCode>][] = [
    [
      'that sends more than it announced',
      (host) => {
        host.say({ ...ready, size: 10 })
        host.bulk('data', Buffer.alloc(11))
      },
      ['guest-protocol', /more than the 10 bytes it announced/],
    ],
    [
      'that ends short of what it announced, by its own count',
      (host) => {
        host.say({ ...ready, size: 10 })
        host.bulk('data', 'abc')
        host.say({ type: 'complete', size: 10, checksum: md5(Buffer.from('abc')) })
      },
      ['checksum-mismatch', /3 bytes .* the guest sent 10/],
    ],
    [
      'with another checksum',
      (host) => {
        host.say({ ...ready, size: 3 })
        host.bulk('data', 'abc')
        host.say({ type: 'complete', size: 3, checksum: md5(Buffer.from('abd')) })
      },
      ['checksum-mismatch', /3 bytes with checksum/],
    ],
    ['without a size', (host) => host.say(ready), ['guest-protocol', /a ready without size and mode/]],
    [
      'that fails in the middle',
      (host) => {
        host.say({ ...ready, size: 10 })
        host.bulk('data', 'abc')
        host.say({ type: 'error', code: 'internal', message: 'read error' })
      },
      ['internal', /^in the guest: read error$/],
    ],
    [
      'that stops inside a frame',
      (host) => {
        host.say({ ...ready, size: 10 })
        host.raw(encodeHeader('data', 10), Buffer.alloc(4))
        host.socket.end()
      },
      ['link-lost', /frame-truncated/],
    ],
    [
      'that stops between frames',
      (host) => {
        host.say({ ...ready, size: 10 })
        host.bulk('data', Buffer.alloc(4))
        host.socket.end()
      },
      ['link-lost', /closed/],
    ],
    [
      "in a command's frames",
      (host) => {
        host.say({ ...ready, size: 10 })
        host.bulk('stdout', 'abc')
      },
      ['guest-protocol', /a stdout frame is out of place/],
    ],
    ['that never begins', () => undefined, ['guest-silent', /within 80 ms/]],
    ['that never goes on', (host) => host.say({ ...ready, size: 10 }), ['guest-silent', /within 80 ms/]],
  ]
  for (const [what, attack, expected] of hostile) {
    it(`${what} is not committed, and its connection is closed`, async (t) => {
      const { agent, guest } = await agentWith(
        t,
        async (host) => {
          await greet(host)
          await host.expect('download')
          attack(host)
          await host.closed()
        },
        { answerTimeoutMs: 80 },
      )
      const sink = new MemorySink()
      await assert.rejects(download(agent, '/f', sink), hasCode(...expected))
      assert.ok(!sink.calls.includes('commit'))
      await guest.idle()
    })
  }

  it('is taken no faster than the sink writes', async (t) => {
    let sent = 0
    const megabyte = Buffer.concat([encodeHeader('data', 1_048_576), Buffer.alloc(1_048_576)])
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('download')
      // A guest that ignores its own window.
      host.say({ ...ready, windowBytes: 16_777_216, size: 2 ** 40 })
      while (await host.paced(megabyte)) sent += megabyte.length
    })
    let writes = 0
    const stuck: DownloadSink = {
      begin: async () => undefined,
      write: () => (++writes < 3 ? Promise.resolve() : new Promise(() => undefined)),
      commit: async () => undefined,
    }
    const controller = new AbortController()
    const taken = download(agent, '/f', stuck, { signal: controller.signal })
    taken.catch(() => undefined)
    let before = -1
    while (before !== sent || sent === 0) {
      before = sent
      await new Promise((resolve) => setTimeout(resolve, 50)) // until the guest is stopped: no event tells of that
    }
    assert.ok(sent < 10 * 1_048_576, `${sent} bytes were taken of a guest whose file is not written`)
    agent.close(new Error('the test ends'))
    await guest.idle()
  })

  it('that the sink refuses, or cannot write, ends with its error and closes', async (t) => {
    const fault = new BandSoxError('no-space', 'full')
    for (const failing of ['begin', 'write', 'commit'] as const) {
      const { agent, guest } = await agentWith(t, honest(guestWith({ files: new Map([['/f', content]]) })))
      const sink = new MemorySink()
      sink[failing] = () => Promise.reject(fault)
      await assert.rejects(download(agent, '/f', sink), (error) => error === fault)
      await guest.idle()
    }
  })
})
