/**
 * A pause, with the two faults that Firecracker's vsock is known for up to 1.16, played by the sockets in front of the agent:
 * host-initiated connections hang for ever after a bare pause and resume (firecracker-microvm/firecracker#6100), and traffic in flight at
 * a pause ends everything in a livelock, the serial line included (#6074).
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import { seededRandom } from '../testing/random.js'
import type { TestScope } from '../testing/temporary-folder.js'
import { startJob } from './job.js'
import { type CuttableGuest, cuttableGuest } from './testing/cuttable-guest.js'
import { upload } from './upload.js'
import { streamSource } from './upload-source.js'

const content = Buffer.alloc(2_000_000, seededRandom(5).bytes(65_537))

/** What a manager does to a machine, and what Firecracker's faults make of it. */
class FaultyMachine {
  readonly #guest: CuttableGuest
  #resumed: Promise<void> = Promise.resolve()
  #resume: () => void = () => undefined
  isLivelocked = false

  constructor(guest: CuttableGuest) {
    this.#guest = guest
    guest.agent.onLost(async () => {
      await this.#resumed
      return 'mended'
    })
  }

  /** @param quiesce Whether the links are closed first, as they must be. */
  async pause(quiesce: boolean): Promise<void> {
    const { agent, vsock, serial } = this.#guest
    this.#resumed = new Promise((resolve) => {
      this.#resume = resolve
    })
    if (quiesce) {
      agent.quiesce(new BandSoxError('link-lost', 'it was paused'))
      while (vsock.open > 0) await new Promise((resolve) => setImmediate(resolve))
    }
    if (vsock.open > 0) {
      this.isLivelocked = true
      serial.stall(true) // #6074
    }
    vsock.stall(true) // #6100, from here on
  }

  resume(): void {
    this.#resume()
  }
}

async function* slowly(onHalf: () => Promise<void>): AsyncGenerator<Uint8Array> {
  for (let offset = 0; offset < content.length; offset += 100_000) {
    if (offset === 1_000_000) await onHalf()
    yield content.subarray(offset, offset + 100_000)
  }
}

async function machine(t: TestScope) {
  const guest = await cuttableGuest(t)
  return { ...guest, machine: new FaultyMachine(guest) }
}

describe('a pause in the middle', () => {
  it('of an upload leaves no connection open, and it goes on over the link that still works', async (t) => {
    const { agent, vsock, folder, machine: faulty } = await machine(t)
    const file = path.join(folder, 'f')
    const result = await upload(
      agent,
      file,
      streamSource(
        slowly(async () => {
          assert.equal(vsock.open, 1)
          await faulty.pause(true)
          faulty.resume()
        }),
      ),
    )
    assert.ok((await readFile(file)).equals(content))
    assert.equal(result.link, 'serial')
    assert.equal(faulty.isLivelocked, false)
  })

  it('of a command comes back to it, and its output is whole', async (t) => {
    const { agent, folder, machine: faulty } = await machine(t)
    const command = 'echo one; while [ ! -e go ]; do sleep 0.02; done; echo two'
    const job = startJob(async () => agent, { shell: command, cwd: folder })
    const output: string[] = []
    for await (const { data } of job.output) {
      output.push(Buffer.from(data).toString())
      if (output.length > 1) continue
      await faulty.pause(true)
      faulty.resume()
      await startJob(async () => agent, { shell: 'touch go', cwd: folder }).wait()
    }
    assert.equal(output.join(''), 'one\ntwo\n')
    const { exitCode, link } = await job.wait()
    assert.deepEqual([exitCode, link], [0, 'serial'])
  })

  it('without closing the links first ends in the livelock: the stand-in can fail', async (t) => {
    const { agent, vsock, machine: faulty } = await machine(t)
    const connection = await agent.acquire()
    assert.equal(vsock.open, 1)
    await faulty.pause(false)
    assert.ok(faulty.isLivelocked)
    agent.discard(connection)
    faulty.resume()
    await assert.rejects(agent.acquire({ signal: AbortSignal.timeout(2_500) }), { name: 'TimeoutError' })
  })
})
