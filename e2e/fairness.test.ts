/** Many streams at once over one link share it fairly, and many programs use one machine's line side by side. */
import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import path from 'node:path'
import { test } from 'node:test'
import { type LinkKind, openBandSox, type Sandbox } from 'bandsox'
import { Agent } from 'bandsox/internal/guest/agent.js'
import { type DownloadSink, download } from 'bandsox/internal/guest/download.js'
import { upload } from 'bandsox/internal/guest/upload.js'
import { bytesSource } from 'bandsox/internal/guest/upload-source.js'
import type { Link } from 'bandsox/internal/link/link.js'
import { socketLink } from 'bandsox/internal/link/socket-link.js'
import { SandboxStore } from 'bandsox/internal/store/sandbox-store.js'
import { cli } from './support/command-line.js'
import { randomBytes } from './support/random.js'
import { type TestStorage, temporaryStorage } from './support/storage.js'

/** An agent over one link and no other, whose connections can be looked at. */
class CountingAgent extends Agent {
  readonly sockets: Socket[]

  constructor(link: Link) {
    const sockets: Socket[] = []
    super([
      {
        kind: link.kind,
        async open(signal) {
          const socket = await link.open(signal)
          sockets.push(socket)
          return socket
        },
      },
    ])
    this.sockets = sockets
  }
}

async function agentOver(kind: LinkKind, storage: TestStorage, sandbox: Sandbox): Promise<CountingAgent> {
  const store = await SandboxStore.open(storage.folder)
  const port = (await store.read(sandbox.id))?.port
  store.close()
  assert.ok(port)
  return new CountingAgent(socketLink(kind, path.join((await sandbox.info()).directory, `${kind}.sock`), port))
}

/** Downloads the same file so many times at once. @returns How many bytes each connection had brought when the first file was there. */
async function whenTheFirstEnds(agent: CountingAgent, file: string, streams: number): Promise<number[]> {
  let snapshot: number[] | undefined
  const sink: DownloadSink = {
    async begin() {
      // Nothing to prepare: what comes is dropped.
    },
    async write() {
      // Dropped.
    },
    async commit() {
      snapshot ??= agent.sockets.map(({ bytesRead }) => bytesRead)
    },
  }
  await Promise.all(Array.from({ length: streams }, () => download(agent, file, sink)))
  assert.equal(snapshot?.length, streams)
  return snapshot
}

/** The same for uploads. @returns How many bytes of each the kernel had taken. */
async function uploadsWhenTheFirstEnds(agent: CountingAgent, content: Buffer, streams: number): Promise<number[]> {
  let snapshot: number[] | undefined
  const one = async (index: number) => {
    await upload(agent, `/data/up${index}`, bytesSource(content))
    snapshot ??= agent.sockets.map((socket) => socket.bytesWritten - socket.writableLength)
  }
  await Promise.all(Array.from({ length: streams }, (_, index) => one(index)))
  assert.equal(snapshot?.length, streams)
  return snapshot
}

for (const [kind, streams, sizeBytes] of [
  ['vsock', 64, 4 * 1024 * 1024],
  ['serial', 16, 8 * 1024 * 1024],
] as const) {
  test(`${streams} streams at once over ${kind} are at most three times apart`, async (t) => {
    await using storage = await temporaryStorage()
    const bandsox = await openBandSox({ storage: storage.folder })
    await using sandbox = await bandsox.create('bandsox/base', { vsock: 'on', memoryMib: 1024 })
    const content = randomBytes(sizeBytes, 4)
    await sandbox.files.write('/data/file', content)
    for (const [what, measure] of [
      ['downloads', (agent: CountingAgent) => whenTheFirstEnds(agent, '/data/file', streams)],
      ['uploads', (agent: CountingAgent) => uploadsWhenTheFirstEnds(agent, content, streams)],
    ] as const) {
      const agent = await agentOver(kind, storage, sandbox)
      t.after(() => agent.close())
      const bytes = await measure(agent)
      const [least, most] = [Math.min(...bytes), Math.max(...bytes)]
      t.diagnostic(`${what}: ${least} to ${most} bytes when the first one ended`)
      assert.ok(most <= 3 * least, `${what}: ${bytes.sort((a, b) => a - b).join(' ')}`)
    }
  })
}

test('a program and the command line use one machine over its serial line at the same time', async () => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base', { vsock: 'off' })
  const content = randomBytes(16 * 1024 * 1024, 3)
  const output = async (...words: string[]) => {
    const { status, stdout, stderr } = await cli(storage.folder, ['exec', sandbox.id, '--', ...words])
    assert.equal(status, 0, stderr)
    return stdout
  }
  const [own, lines, other] = await Promise.all([
    sandbox.files.write('/data/file', content),
    output('seq', '1', '200000'),
    output('sh', '-c', 'head -c 3000000 /dev/zero | tr "\\\\0" x'),
  ])
  assert.equal(own.link, 'serial')
  assert.equal(lines, Array.from({ length: 200_000 }, (_, index) => `${index + 1}\n`).join(''))
  assert.equal(other, 'x'.repeat(3_000_000))
  assert.ok((await sandbox.files.read('/data/file')).equals(content))
})
