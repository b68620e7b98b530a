/** Streams that no honest guest sends, against the host's own unpacking. */
import assert from 'node:assert/strict'
import { lstat, mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { BandSoxError, type ErrorCode } from '@bandsox/sdk'
import { createChecksum } from '../../guest/checksum.js'
import { agentWith, greet, HELLO, type HostPeer } from '../../guest/testing/stand-in-agent.js'
import { headerBlock, padded, paxRecord, tarEnd } from '../../tar/tar-writer.js'
import { seededRandom } from '../../testing/random.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { copyOut } from './copy-out.js'
import { type StreamEntry, streamHeader } from './entry-header.js'
import { HostUnpacker } from './unpack-host.js'

const own = { mode: 0o755, uid: 0, gid: 0, mtimeNs: 1_000_000_000n }
const folder = (name: string): StreamEntry => ({ ...own, path: name, kind: 'directory' })
const file = (name: string, sizeBytes = 0): StreamEntry => ({ ...own, path: name, kind: 'file', sizeBytes })
const to = (name: string, target: string): StreamEntry => ({ ...own, path: name, kind: 'symlink', target })
const hard = (name: string, target: string): StreamEntry => ({ ...own, path: name, kind: 'hardlink', target })

const streamOf = (entries: readonly StreamEntry[], content: Buffer = Buffer.alloc(0)): Buffer =>
  Buffer.concat([
    ...entries.map((entry) =>
      Buffer.concat([
        streamHeader(entry).header,
        ...(entry.sizeBytes ? [content, Buffer.alloc(streamHeader(entry).padding)] : []),
      ]),
    ),
    tarEnd(),
  ])

const report = async (stream: Buffer, over: object = {}): Promise<string> => {
  const checksum = await createChecksum('xxh64')
  checksum.update(stream)
  const counts = { files: 0, folders: 0, links: 0, others: 0, bytes: 0, skipped: [], skippedCount: 0 }
  return `${JSON.stringify({ ...counts, streamBytes: stream.length, xxh64: checksum.digest(), ...over })}\n`
}

/** A folder whose extended header is the test's own. */
function paxFolder(name: string, records: Buffer): Buffer {
  const extension = { path: 'pax', kind: 'file', mode: 0o644, uid: 0, gid: 0, mtime: 1, xattrs: undefined } as const
  const header = headerBlock(extension, 'x', records.length)
  return Buffer.concat([header, padded(records), streamHeader(folder(name)).header])
}

function exposedCollector(): () => void {
  setFlagsFromString('--expose-gc')
  return runInNewContext('gc') as () => void
}

async function answerStat(host: HostPeer): Promise<void> {
  const { path: name } = await host.expect('stat')
  host.say({
    type: 'info',
    file: { name: path.basename(name), type: 'directory', size: 0, mode: 0o755, uid: 0, gid: 0, mtimeMs: 0 },
  })
}

/** Copies what a guest sends that says whatever `say` says. */
async function copied(t: TestScope, target: string, say: (host: HostPeer) => Promise<void> | void): Promise<unknown> {
  const { agent } = await agentWith(t, async (host) => {
    await greet(host, { ...HELLO, capabilities: ['tools'] })
    await answerStat(host)
    await host.expect('exec')
    host.say({ type: 'started', pid: 7 })
    await say(host)
    await host.closed()
  })
  try {
    return await copyOut(async () => agent, '/thing', target, {})
  } finally {
    agent.close()
  }
}

const sends =
  (stream: Buffer, over: object = {}) =>
  async (host: HostPeer) => {
    for (let at = 0; at < stream.length; at += 60_000) host.bulk('stdout', stream.subarray(at, at + 60_000))
    host.bulk('stderr', await report(stream, over))
    host.say({ type: 'exit', code: 0 })
  }

async function refused(
  t: TestScope,
  code: ErrorCode,
  say: (host: HostPeer) => Promise<void> | void,
  what: string,
): Promise<string> {
  const place = await temporaryFolder(t)
  const outside = path.join(place, 'outside')
  await mkdir(outside)
  await writeFile(path.join(outside, 'victim'), 'untouched')
  await mkdir(path.join(place, 'in'))
  let message = ''
  await assert.rejects(copied(t, path.join(place, 'in/copy'), say), (error: unknown) => {
    assert.ok(error instanceof BandSoxError, `${what}: ${String(error)}`)
    assert.equal(error.code, code, `${what}: ${error.message}`)
    message = error.message
    return true
  })
  assert.deepEqual(await readdir(path.join(place, 'in')), [], `${what} left something`)
  assert.deepEqual(await readdir(outside), ['victim'])
  assert.equal(await readFile(path.join(outside, 'victim'), 'utf8'), 'untouched')
  return message
}

describe("a hostile guest's copy", () => {
  const lies: [string, StreamEntry[]][] = [
    ['an absolute name', [folder('.'), file('/tmp/x')]],
    ['..', [folder('.'), file('../outside/x')]],
    ['.. in the middle', [folder('.'), folder('a'), file('a/../../outside/x')]],
    ['a way through a link', [folder('.'), to('l', '../outside'), file('l/x')]],
    ['a folder through a link', [folder('.'), to('l', '../outside'), folder('l/x')]],
    ['a folder in the place of a link', [folder('.'), to('l', '../outside'), folder('l')]],
    ['a file in the place of a link', [folder('.'), to('l', '../outside/victim'), file('l')]],
    ['a link in the place of a folder', [folder('.'), folder('a'), to('a', '../outside'), file('a/x')]],
    ['a hard link out', [folder('.'), hard('h', '../outside/victim')]],
    ['a hard link to an absolute path', [folder('.'), hard('h', '/etc/passwd')]],
    ['a hard link through a link', [folder('.'), to('l', '../outside'), hard('h', 'l/victim')]],
    ['a hard link to a link', [folder('.'), to('l', '../outside/victim'), hard('h', 'l')]],
    ['a hard link to a folder', [folder('.'), folder('a'), hard('h', 'a')]],
    ['a file in no folder', [folder('.'), file('missing/x')]],
    ['a file in a file', [folder('.'), file('f'), file('f/x')]],
    ['the same twice', [folder('.'), file('f'), file('f')]],
    ['a root that is a link, and something in it', [to('.', '../outside'), file('x')]],
    ['the root twice', [folder('.'), folder('.')]],
    ['no root', [file('x')]],
    ['nothing', []],
    ['a name that is too long', [folder('.'), file('x'.repeat(256))]],
    ['a path that is too long', [folder('.'), file(`${'x/'.repeat(2_100)}y`)]],
    ['a tree that is too deep', [folder('.'), file(`${'x/'.repeat(600)}y`)]],
  ]
  it('never leads out of its target', async (t) => {
    for (const [what, entries] of lies) await refused(t, 'guest-protocol', sends(streamOf(entries)), what)
  })

  it('is refused by one error that names the entry', async (t) => {
    const message = await refused(
      t,
      'guest-protocol',
      sends(streamOf([folder('.'), folder('a'), file('a/../b\u001b[31m')])),
      'escape',
    )
    assert.match(message, /a\/\.\.\/b/)
    assert.ok(!message.includes('\u001b'))
  })

  it('that is damaged, cut short, or not what it says, is no copy', async (t) => {
    const content = seededRandom(5).bytes(200_000)
    const good = streamOf([folder('.'), file('f', content.length)], content)
    const damaged = Buffer.from(good)
    damaged[10_000] = (damaged[10_000] ?? 0) ^ 1
    await refused(
      t,
      'checksum-mismatch',
      async (host) => {
        for (let at = 0; at < damaged.length; at += 60_000) host.bulk('stdout', damaged.subarray(at, at + 60_000))
        host.bulk('stderr', await report(good))
        host.say({ type: 'exit', code: 0 })
      },
      'damage',
    )
    await refused(t, 'guest-protocol', sends(good.subarray(0, 100_000)), 'cut in a file')
    await refused(t, 'checksum-mismatch', sends(good, { streamBytes: good.length + 1 }), 'another length')
    await refused(t, 'guest-protocol', sends(seededRandom(6).bytes(100_000)), 'noise')
    await refused(
      t,
      'link-lost',
      (host) => {
        host.bulk('stdout', good.subarray(0, 60_000))
        host.socket.destroy()
      },
      'a broken link',
    )
    await refused(
      t,
      'guest-protocol',
      (host) => {
        host.bulk('stdout', good)
        host.say({ type: 'exit', code: 0 })
      },
      'no report',
    )
    await refused(
      t,
      'guest-protocol',
      (host) => {
        for (let count = 0; count < 40; count++) host.bulk('stderr', Buffer.alloc(60_000, 'x'))
      },
      'a report without end',
    )
    await refused(
      t,
      'command-failed',
      (host) => {
        host.bulk('stderr', 'Killed\n')
        host.say({ type: 'exit', signal: 'SIGKILL' })
      },
      'a tool that was killed',
    )
    await refused(
      t,
      'no-space',
      (host) => {
        host.bulk('stderr', `${JSON.stringify({ error: { code: 'no-space', message: 'full' } })}\n`)
        host.say({ type: 'exit', code: 1 })
      },
      'a tool that could not',
    )
  })

  it('does not fill our memory with the attributes, times and names of its folders', async (t) => {
    const collect = exposedCollector()
    const place = await temporaryFolder(t)
    const unpacker = new HostUnpacker(path.join(place, 'copy'), () => undefined)
    await unpacker.begin()
    await unpacker.write(streamHeader(folder('.')).header)
    /** Once all that can be collected has been: a buffer's memory goes some turns after the buffer. */
    const keptBytes = async () => {
      let least = Number.POSITIVE_INFINITY
      for (let round = 0; round < 10; round++) {
        collect()
        await new Promise((resolve) => setImmediate(resolve))
        const { heapUsed, arrayBuffers } = process.memoryUsage()
        least = Math.min(least, heapUsed + arrayBuffers)
      }
      return least
    }
    const before = await keptBytes()
    for (let index = 0; index < 600; index++) {
      const records = [
        paxRecord('SCHILY.xattr.user.a', 'a'.repeat(60_000)),
        paxRecord('mtime', `1.${'0'.repeat(60_000)}`),
      ]
      await unpacker.write(paxFolder(`f${index}`, Buffer.concat(records)))
    }
    const kept = (await keptBytes()) - before
    assert.ok(kept < 16 * 1024 * 1024, `${kept} bytes are kept of 600 folders`)
    await unpacker.discard()
    const long = Array.from({ length: 16 }, () => 'x'.repeat(240))
    const parents = long.map((_, depth) => folder(long.slice(0, depth + 1).join('/')))
    const many = Array.from({ length: 4_500 }, (_, index) => folder(`${long.join('/')}/${index}`))
    await refused(t, 'guest-protocol', sends(streamOf([folder('.'), ...parents, ...many])), 'names without end')
  })

  it('is no room for a sparse file that says it is huge', async (t) => {
    const place = await temporaryFolder(t)
    const bomb: StreamEntry = { ...file('bomb', 2 ** 40), extents: [{ offset: 2 ** 39, length: 5 }] }
    await copied(t, path.join(place, 'copy'), sends(streamOf([folder('.'), bomb], Buffer.from('hello'))))
    const { size, blocks } = await stat(path.join(place, 'copy/bomb'))
    assert.equal(size, 2 ** 40)
    assert.ok(blocks * 512 < 100_000, `${blocks} blocks`)
  })

  it('gets no set-id bits, and a link in its place is replaced and not followed', async (t) => {
    const place = await temporaryFolder(t)
    await mkdir(path.join(place, 'there'))
    await writeFile(path.join(place, 'victim'), 'untouched')
    await mkdir(path.join(place, 'there/thing'))
    await symlink('../../victim', path.join(place, 'there/thing/f'))
    const content = Buffer.from('new')
    const entries = [folder('.'), { ...file('f', 3), mode: 0o6777 }]
    await copied(t, path.join(place, 'there'), sends(streamOf(entries, content)))
    const made = await lstat(path.join(place, 'there/thing/f'))
    assert.ok(made.isFile())
    assert.equal(made.mode & 0o7777, 0o777)
    assert.equal(await readFile(path.join(place, 'victim'), 'utf8'), 'untouched')
  })
})
