import assert from 'node:assert/strict'
import { appendFile, mkdir, rename, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { openDescriptors } from '../testing/descriptors.js'
import { seededRandom } from '../testing/random.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { consolePosition, consoleSaysReady, consoleTail, readConsole } from './console.js'

const log = (folder: string) => path.join(folder, 'console.log')
/** What the shim does at `maxBytes`. */
const rotate = (folder: string) => rename(log(folder), `${log(folder)}.1`)

async function textOf(chunks: AsyncIterable<Uint8Array>): Promise<string> {
  const parts: Uint8Array[] = []
  for await (const chunk of chunks) parts.push(chunk)
  return Buffer.concat(parts).toString()
}

/** Reads on until the text ends with `end`. */
async function readUntil(chunks: AsyncGenerator<Uint8Array>, end: string): Promise<string> {
  let text = ''
  while (!text.endsWith(end)) {
    const { value, done } = await chunks.next()
    if (done) throw new Error(`it ended after ${JSON.stringify(text)}`)
    text += Buffer.from(value).toString()
  }
  return text
}

describe('the console', () => {
  it('is read oldest first, whatever was rotated', async (t) => {
    const folder = await temporaryFolder(t)
    assert.equal(await textOf(readConsole(folder)), '')
    await writeFile(log(folder), 'old\n')
    assert.equal(await textOf(readConsole(folder)), 'old\n')
    await rotate(folder)
    assert.equal(await textOf(readConsole(folder)), 'old\n')
    await writeFile(log(folder), 'new\n')
    assert.equal(await textOf(readConsole(folder)), 'old\nnew\n')
  })

  it('that is larger than one read comes whole', async (t) => {
    const folder = await temporaryFolder(t)
    const text = 'x'.repeat(300_000)
    await writeFile(log(folder), `${text}end`)
    assert.equal(await textOf(readConsole(folder)), `${text}end`)
  })

  it('is followed as it grows, from before its first byte and across rotations', async (t) => {
    const folder = await temporaryFolder(t)
    const following = readConsole(folder, { follow: true })
    const first = readUntil(following, '1\n')
    await appendFile(log(folder), '1\n')
    assert.equal(await first, '1\n')
    await appendFile(log(folder), '2\n') // what comes while nobody reads is not lost
    await appendFile(log(folder), '3\n')
    assert.equal(await readUntil(following, '3\n'), '2\n3\n')
    await appendFile(log(folder), '4\n')
    await rotate(folder)
    await appendFile(log(folder), '5\n')
    assert.equal(await readUntil(following, '5\n'), '4\n5\n')
    await following.return(undefined)
  })

  it('is followed without a loss, however writing and reading fall together', async (t) => {
    const folder = await temporaryFolder(t)
    const random = seededRandom(3)
    const following = readConsole(folder, { follow: true })
    const reading = readUntil(following, 'end\n')
    let written = ''
    for (let line = 0; line < 300; line++) {
      const text = `${line} ${'x'.repeat(random.below(200))}\n`
      written += text
      await appendFile(log(folder), text)
      // Rotated only after a while, as by the shim: a reader may fall behind by one rotation, not by two.
      if (line % 100 === 99) {
        await new Promise((resolve) => setTimeout(resolve, 30))
        await rotate(folder)
      }
      for (let turn = random.below(4); turn > 0; turn--) await new Promise((resolve) => setImmediate(resolve))
    }
    await appendFile(log(folder), 'end\n')
    assert.equal(await reading, `${written}end\n`)
    await following.return(undefined)
  })

  it('is followed until its signal, and quietly', async (t) => {
    const folder = await temporaryFolder(t)
    await writeFile(log(folder), 'a')
    const controller = new AbortController()
    const following = readConsole(folder, { follow: true, signal: controller.signal })
    await following.next()
    const next = following.next()
    controller.abort()
    assert.equal((await next).done, true)
    assert.equal(await textOf(readConsole(folder, { follow: true, signal: AbortSignal.abort() })), 'a')
  })

  it('is followed until the sandbox is removed', async (t) => {
    const folder = path.join(await temporaryFolder(t), 'vm')
    await mkdir(folder)
    await writeFile(log(folder), 'last words')
    const following = readConsole(folder, { follow: true })
    await following.next()
    const next = following.next()
    await rename(folder, `${folder}.removed`)
    await rm(`${folder}.removed`, { recursive: true })
    assert.equal((await next).done, true)
  })

  it('leaves no descriptor behind, however the reading ends', async (t) => {
    const folder = await temporaryFolder(t)
    await writeFile(`${log(folder)}.1`, 'x'.repeat(200_000))
    await writeFile(log(folder), 'y'.repeat(200_000))
    await textOf(readConsole(folder))
    const warm = readConsole(folder, { follow: true })
    await warm.next()
    await warm.return(undefined)
    await new Promise((resolve) => setImmediate(resolve))
    const before = await openDescriptors()
    for (let round = 0; round < 5; round++) {
      for await (const _ of readConsole(folder, { follow: true })) break
      for await (const _ of readConsole(folder)) break
    }
    await new Promise((resolve) => setImmediate(resolve))
    assert.deepEqual(await openDescriptors(), before)
  })
})

describe('the tail of the console', () => {
  it('is the last lines of guest and VMM, without what a terminal would obey', async (t) => {
    const folder = await temporaryFolder(t)
    assert.equal(await consoleTail(folder), '')
    await writeFile(log(folder), `${'early\n'.repeat(2_000)}\u001b[31mpanic\u0007\r\n`)
    await writeFile(path.join(folder, 'vmm.log'), 'qemu: gone\u0000\n')
    const lines = (await consoleTail(folder)).split('\n')
    assert.ok(lines.length <= 12)
    assert.ok(lines.includes('[31mpanic'))
    assert.equal(lines.at(-1), 'qemu: gone')
  })

  it('says ready of the machine that is meant, whatever earlier ones have said', async (t) => {
    const folder = await temporaryFolder(t)
    const file = path.join(folder, 'console.log')
    await writeFile(file, 'bandsox-agent: 0.1.0 ready on vsock port 9000 (boot 1 ms)\n')
    const after = await consolePosition(folder)
    const ask = (port: number, timeoutMs: number) =>
      consoleSaysReady(folder, { port, after, timeoutMs, signal: new AbortController().signal })
    assert.equal(await ask(9000, 100), false)
    await appendFile(file, 'bandsox-agent: 0.1.0 ready on vsock port 9001 (boot 1 ms)\nlast words\n')
    assert.equal(await ask(9000, 100), false)
    assert.equal(await ask(9001, 5_000), true)
    assert.match(await consoleTail(folder, after), /^bandsox-agent: .*9001.*\nlast words$/)
  })

  it('says ready on the serial line, which counts where there is no vsock, or the guest does not find it', async (t) => {
    const folder = await temporaryFolder(t)
    const says = async (text: string, hasVsock: boolean) => {
      await writeFile(log(folder), text)
      const signal = new AbortController().signal
      return await consoleSaysReady(folder, { port: 9000, hasVsock, after: undefined, timeoutMs: 100, signal })
    }
    const serial = 'bandsox-agent: 0.1.0 ready on the serial line ttyS0 (boot 1 ms)\n'
    const missing = 'bandsox-agent: 0.1.0 waits for vsock: no such device\n'
    assert.equal(await says(serial, false), true)
    assert.equal(await says(serial, true), false)
    assert.equal(await says(missing, true), false)
    assert.equal(await says(missing + serial, true), true)
    // A kernel with vsock but without its device lets the agent listen, where nobody comes.
    assert.equal(await says('bandsox-agent: 0.1.0 ready on vsock port 9000 (boot 1 ms)\n', false), false)
    assert.equal(await says(serial.replace('bandsox-agent', 'login'), false), false)
  })
})
