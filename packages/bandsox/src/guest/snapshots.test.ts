import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import { BandSoxError, type Job } from '@bandsox/sdk'
import type { Link } from '../link/link.js'
import { hasCode } from '../testing/errors.js'
import { realAgent } from '../testing/real-agent.js'
import { Agent } from './agent.js'
import { freezeGuest, thawGuest } from './freeze.js'
import { listGuestJobs } from './guest-jobs.js'
import { identifyGuest } from './identity.js'
import { attachToJob, startJob } from './job.js'
import { agentWith, greet, HELLO } from './testing/stand-in-agent.js'

const timeoutMs = 5_000
const refusingLink: Link = {
  kind: 'serial',
  open: async () => {
    throw new BandSoxError('link-refused', 'it is held back')
  },
}
const user = String(process.getuid?.() ?? 0)

const started = (agent: Agent, shell: string) => startJob(async () => agent, { shell, user })

async function firstOutput(job: Job): Promise<string> {
  for await (const { data } of job.output) return Buffer.from(data).toString()
  throw new Error('no output')
}

describe('an agent that is frozen', () => {
  it('begins no command, and the one that was asked for begins when it goes on', async (t) => {
    const agent = await realAgent(t)
    const { processes, stages, warnings } = await freezeGuest(agent, { timeoutMs })
    assert.equal(processes, 0)
    assert.deepEqual(Object.keys(stages).sort(), ['flush', 'freeze', 'hooks', 'sync'])
    assert.match(warnings[0] ?? '', /no process stands still/)
    const job = started(agent, 'echo ran')
    let isRunning = false
    const output = job.collect().then((result) => {
      isRunning = true
      return result.stdout
    })
    await new Promise((resolve) => setTimeout(resolve, 200))
    assert.equal(isRunning, false)
    assert.deepEqual((await freezeGuest(agent, { timeoutMs })).stages, {}, 'the second time there is nothing to do')
    await thawGuest(agent, { timeoutMs })
    assert.equal(await output, 'ran\n')
    await thawGuest(agent, { timeoutMs })
  })

  it('is looked for again: its owner finds out that whoever froze it was killed', async (t) => {
    const agent = await realAgent(t)
    await freezeGuest(agent, { timeoutMs })
    let asked = 0
    const findAgent = async () => {
      if (asked++ > 0) await thawGuest(agent, { timeoutMs })
      return agent
    }
    assert.equal((await startJob(findAgent, { shell: 'echo ran', user }).collect()).stdout, 'ran\n')
    assert.equal(asked, 2)
  })

  it('is waited for where it was when its owner says that it may not be asked now', async (t) => {
    const agent = await realAgent(t)
    await freezeGuest(agent, { timeoutMs })
    let asked = 0
    const findAgent = async () => {
      if (asked++ === 0) return agent
      await thawGuest(agent, { timeoutMs }) // as by a resume
      throw new BandSoxError('wrong-state', 'it is paused')
    }
    assert.equal((await startJob(findAgent, { shell: 'echo ran', user }).collect()).stdout, 'ran\n')
  })

  it('is not asked of one that is too old', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host, { ...HELLO, capabilities: ['attach'] })
      await host.closed()
    })
    const isTooOld = hasCode('agent-incompatible')
    await assert.rejects(freezeGuest(agent, { timeoutMs }), isTooOld)
    await assert.rejects(thawGuest(agent, { timeoutMs }), isTooOld)
    await assert.rejects(identifyGuest(agent, {}, { timeoutMs }), isTooOld)
    await assert.rejects(listGuestJobs(agent, { timeoutMs }), isTooOld)
    await assert.rejects(attachToJob(async () => agent, 'a'.repeat(16)).wait(), isTooOld)
  })

  it('is told by its hooks to stay as it is', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host, { ...HELLO, capabilities: ['snapshot'] })
      assert.equal((await host.expect('freeze')).hooksMs, 10)
      const tail = 'x'.repeat(3_000)
      host.say({ type: 'error', code: 'hook-failed', message: `the hook 10-db ended with status 1: ${tail} no room` })
      await host.closed()
    })
    await assert.rejects(freezeGuest(agent, { timeoutMs, hooksMs: 10 }), (error: Error) => {
      assert.match(error.message, /10-db.*no room$/)
      return hasCode('hook-failed')(error)
    })
  })
})

describe('who has a guest frozen', () => {
  it('does not wait for the operation that is its own', async (t) => {
    const agent = new Agent([refusingLink])
    t.after(() => agent.close())
    agent.onLost(async () => 'held') // as it says to everybody, while there is one
    await assert.rejects(freezeGuest(agent, { timeoutMs }), hasCode('link-refused'))
    await assert.rejects(thawGuest(agent, { timeoutMs }), hasCode('link-refused'))
  })
})

describe('an identity', () => {
  it('is sent with the time at a moment of the guest, and what failed is told', async (t) => {
    const entropy = randomBytes(32)
    const { agent } = await agentWith(t, async (host) => {
      await greet(host, { ...HELLO, capabilities: ['snapshot'] })
      // The first answer takes so long that another one is asked for, which says it better.
      await host.expect('ping')
      await new Promise((resolve) => setTimeout(resolve, 200))
      host.say({ type: 'pong', uptimeMs: 1_000 })
      await host.expect('ping')
      const now = Date.now()
      host.say({ type: 'pong', uptimeMs: 1_200 })
      const asked = await host.expect('identify')
      assert.ok(Math.abs((asked.timeUs ?? 0) / 1000 - now) < 100)
      assert.equal(asked.uptimeMs, 1_200)
      assert.deepEqual(Buffer.from(asked.entropy ?? '', 'base64'), entropy)
      assert.deepEqual([asked.hostname, asked.port, asked.restored], ['other', 9_001, true])
      host.say({ type: 'identified', stagesUs: { clock: 1_500 }, failures: ['no clock'], port: 9_001 })
      await host.closed()
    })
    const identity = { hostname: 'other', port: 9_001, restored: true, setsClock: true, entropy }
    const identified = await identifyGuest(agent, identity, { timeoutMs })
    assert.deepEqual(identified, { stages: { clock: 1.5 }, failures: ['no clock'], port: 9_001 })
  })

  it('is in the environment of later commands', async (t) => {
    const agent = await realAgent(t)
    await identifyGuest(agent, { env: { BANDSOX_ID: 'sbx_7' } }, { timeoutMs })
    assert.equal((await started(agent, 'echo $BANDSOX_ID').collect()).stdout, 'sbx_7\n')
  })
})

describe('a command of a restored guest', () => {
  it('is listed, taken over where its output begins, and left running', async (t) => {
    const agent = await realAgent(t)
    const before = started(agent, 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done')
    const lost = assert.rejects(before.wait())
    await new Promise((resolve) => setTimeout(resolve, 200))
    const [running] = await listGuestJobs(agent, { timeoutMs })
    assert.ok(running)
    assert.match(running.command, /^i=0;/)
    assert.deepEqual([running.ended, running.pty], [false, false])
    const first = attachToJob(async () => agent, running.job)
    assert.match(await firstOutput(first), /^\d/)
    await identifyGuest(agent, { restored: true }, { timeoutMs })
    // Whoever had it tries to come back to what is not its own any more; here it is the same guest, so it is taken away again.
    const second = attachToJob(async () => agent, running.job)
    const seen: string[] = []
    for await (const { data } of second.output) {
      seen.push(Buffer.from(data).toString())
      if (seen.join('').split('\n').length > 20) break
    }
    const numbers = seen.join('').split('\n').slice(1, 20).map(Number)
    assert.deepEqual(
      numbers,
      numbers.map((_, index) => (numbers[0] ?? 0) + index),
      'nothing is missing in between',
    )
    await assert.rejects(second.wait(), hasCode('cancelled'))
    assert.equal((await listGuestJobs(agent, { timeoutMs }))[0]?.ended, false)
    const third = attachToJob(async () => agent, running.job)
    third.kill('SIGKILL')
    assert.equal((await third.wait()).signal, 'SIGKILL')
    agent.close()
    await lost
  })

  it('that nobody knows is not found', async (t) => {
    const agent = await realAgent(t)
    await assert.rejects(attachToJob(async () => agent, 'a'.repeat(16)).wait(), hasCode('not-found'))
  })

  it('without a terminal has none to resize', async (t) => {
    const agent = await realAgent(t)
    const first = started(agent, 'echo here; sleep 60')
    assert.equal(await firstOutput(attachToJob(async () => agent, await nameOf(agent))), 'here\n')
    const job = attachToJob(async () => agent, await nameOf(agent))
    job.resize(80, 25)
    await assert.rejects(job.wait(), hasCode('bad-request'))
    agent.close()
    await assert.rejects(first.wait())
  })
})

async function nameOf(agent: Agent): Promise<string> {
  for (;;) {
    const [first] = await listGuestJobs(agent, { timeoutMs })
    if (first !== undefined) return first.job
  }
}
