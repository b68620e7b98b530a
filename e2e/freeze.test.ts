/** A machine whose processes stand still for a snapshot, and one that is told who it is: the guest's part, without a snapshot. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, openBandSox, type Sandbox } from 'bandsox'
import { Agent } from 'bandsox/internal/guest/agent.js'
import { freezeGuest, thawGuest } from 'bandsox/internal/guest/freeze.js'
import { listGuestJobs } from 'bandsox/internal/guest/guest-jobs.js'
import { identifyGuest } from 'bandsox/internal/guest/identity.js'
import { attachToJob, startJob } from 'bandsox/internal/guest/job.js'
import { askLinks } from 'bandsox/internal/guest/links.js'
import { socketLink } from 'bandsox/internal/link/socket-link.js'
import { temporaryStorage, until } from './support/storage.js'

const timeoutMs = 20_000
const COUNTER = 'i=0; while :; do i=$((i+1)); echo $i >> /root/count; sleep 0.02; done'

async function machine() {
  const storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  const sandbox = await bandsox.create('bandsox/base')
  const { directory, vsock } = await sandbox.info()
  const linkTo = (port: number, kind: 'vsock' | 'serial') =>
    new Agent([socketLink(kind, path.join(directory, `${kind}.sock`), port)])
  const port = vsock?.port ?? 9000
  return {
    sandbox,
    port,
    linkTo,
    agent: linkTo(port, 'serial'), // beside the sandbox's own
    async [Symbol.asyncDispose]() {
      await sandbox[Symbol.asyncDispose]()
      await storage[Symbol.asyncDispose]()
    },
  }
}

const shell = async (sandbox: Sandbox, command: string) => {
  const { exitCode, stdout, stderr } = await sandbox.exec(command).collect()
  assert.equal(exitCode, 0, stderr)
  return stdout.trim()
}

/** Read as a file: no command can be begun in a machine that stands still. */
async function counted(sandbox: Sandbox): Promise<number> {
  const lines = Buffer.from(await sandbox.files.read('/root/count'))
    .toString()
    .trim()
    .split('\n')
  assert.deepEqual(
    lines,
    lines.map((_, index) => String(index + 1)),
    'it counts on without a gap',
  )
  return lines.length
}

async function standsStill(sandbox: Sandbox): Promise<void> {
  const before = await counted(sandbox)
  await delay(500)
  assert.equal(await counted(sandbox), before)
}

async function goesOn(sandbox: Sandbox): Promise<void> {
  const before = await counted(sandbox)
  await until(async () => (await counted(sandbox)) > before, 'the counter to go on')
}

test('processes that have no control group of their own stand still, one by one', async (t) => {
  await using guest = await machine()
  const { sandbox, agent } = guest
  t.after(() => agent.close())
  const counters = await shell(
    sandbox,
    `for n in 1 2 3 4 5; do setsid sh -c '${COUNTER.replaceAll('count', 'count$0')}' $n > /dev/null 2>&1 & done; for n in 1 2 3 4 5; do until test -s /root/count$n; do sleep 0.05; done; done; cat /proc/self/cgroup`,
  )
  assert.equal(counters, '0::/')
  const sum = async () => {
    const sizes = [1, 2, 3, 4, 5].map(async (n) => (await sandbox.files.read(`/root/count${n}`)).length)
    return (await Promise.all(sizes)).reduce((all, size) => all + size, 0)
  }
  for (let round = 0; round < 5; round++) {
    const startedAt = performance.now()
    const { processes, stages, warnings } = await freezeGuest(agent, { timeoutMs })
    t.diagnostic(
      `froze ${processes} processes in ${Math.round(performance.now() - startedAt)} ms: ${JSON.stringify(stages)}`,
    )
    assert.deepEqual(warnings, [])
    const before = await sum()
    await delay(200)
    assert.equal(await sum(), before)
    const thawingAt = performance.now()
    await thawGuest(agent, { timeoutMs })
    t.diagnostic(`thawed in ${Math.round(performance.now() - thawingAt)} ms`)
    await until(async () => (await sum()) > before, 'they go on')
  }
  await until(
    async () => (await shell(sandbox, 'ls /sys/fs/cgroup')).split('\n').every((name) => !name.startsWith('bandsox')),
    'all to be moved back',
  )
  assert.equal(await shell(sandbox, 'cat /proc/[0-9]*/cgroup | sort -u'), '0::/')
})

test('everything stands still until the machine is thawed, or nobody is heard of', async (t) => {
  await using guest = await machine()
  const { sandbox, agent } = guest
  t.after(() => agent.close())
  const counter = sandbox.exec(COUNTER)
  const ended = counter.wait()
  // A group of the user's own, with the agent moved into it, as docker in docker does.
  await shell(
    sandbox,
    `cd /sys/fs/cgroup && mkdir init && for p in $(cat cgroup.procs); do echo $p > init/cgroup.procs; done 2>/dev/null; grep -q init /proc/1/cgroup`,
  )
  const { processes, stages, warnings } = await freezeGuest(agent, { timeoutMs })
  t.diagnostic(`froze ${processes} processes: ${JSON.stringify(stages)}`)
  assert.deepEqual(warnings, [])
  assert.ok(processes >= 2, `${processes} processes`)
  await standsStill(sandbox)
  const [job] = await listGuestJobs(agent, { timeoutMs })
  assert.equal(job?.command, COUNTER)
  const waiting = shell(sandbox, 'echo ran')
  await thawGuest(agent, { timeoutMs })
  await goesOn(sandbox)
  assert.equal(await waiting, 'ran', 'what was asked for meanwhile is done now')
  assert.equal(
    await shell(sandbox, 'ls -d /sys/fs/cgroup/bandsox-*  2>/dev/null; cat /sys/fs/cgroup/init/cgroup.freeze'),
    '0',
  )

  const again = await freezeGuest(agent, { timeoutMs, leaseMs: 5_000 })
  t.diagnostic(`froze ${again.processes} processes in their place: ${JSON.stringify(again.stages)}`)
  await standsStill(sandbox)
  await goesOn(sandbox)

  const ending = sandbox.exec("trap 'echo in order > /root/ended; exit 0' TERM; while :; do sleep 0.1; done").wait()
  await until(async () => (await sandbox.jobs()).length === 2, 'it to run')
  // A machine that stops does not wait until hosts have heard of an end; what they hear is that one.
  const known = Promise.all(
    [ended, ending].map((each) =>
      each.then(
        ({ exitCode, signal }) => signal ?? exitCode,
        (error: unknown) => (error instanceof BandSoxError ? error.code : error),
      ),
    ),
  )
  await freezeGuest(agent, { timeoutMs })
  await sandbox.stop()
  const [counted, trapped] = await known
  assert.ok(counted === 'SIGTERM' || counted === 'link-lost', `the counter ended by ${counted}`)
  assert.ok(trapped === 0 || trapped === 'link-lost', `who ends in order ended by ${trapped}`)
  await sandbox.start()
  const told = await shell(sandbox, 'cat /root/ended')
  assert.equal(told, 'in order', 'a machine that stops goes on before, so that its processes can end')
})

test('a hook that fails keeps the machine going, and is named', async (t) => {
  await using guest = await machine()
  const { sandbox, agent } = guest
  t.after(() => agent.close())
  const hooks = '/etc/bandsox/hooks'
  await sandbox.files.write(`${hooks}/snapshot.d/10-flush`, '#!/bin/sh\necho flushed > /root/flushed\n', {
    makeParents: true,
    mode: 0o755,
  })
  await sandbox.files.write(
    `${hooks}/snapshot.d/20-database`,
    '#!/bin/sh\necho in the middle of a transaction >&2\nexit 7\n',
    { mode: 0o755 },
  )
  await assert.rejects(freezeGuest(agent, { timeoutMs }), (error: unknown) => {
    assert.ok(error instanceof BandSoxError)
    assert.equal(error.code, 'hook-failed')
    assert.match(error.message, /20-database ended with status 7: in the middle of a transaction$/)
    return true
  })
  assert.equal(await shell(sandbox, `cat /root/flushed && rm ${hooks}/snapshot.d/20-database`), 'flushed')
  await freezeGuest(agent, { timeoutMs })
  await thawGuest(agent, { timeoutMs })
  assert.equal(await shell(sandbox, 'echo on'), 'on')
})

test('a machine becomes who it is told to be, and its command goes on without its host', async (t) => {
  await using guest = await machine()
  const { sandbox, agent, port, linkTo } = guest
  t.after(() => agent.close())
  const hooks = '/etc/bandsox/hooks/restore.d'
  const counter = sandbox.exec(`for i in $(seq 1 100000); do echo line $i; done; sleep 600`)
  counter.wait().catch(() => undefined) // it is taken away below
  await sandbox.files.write(
    `${hooks}/10-tell`,
    '#!/bin/sh\necho "$BANDSOX_HOOK $BANDSOX_ID $(hostname)" > /root/told\n',
    { makeParents: true, mode: 0o755 },
  )
  await shell(
    sandbox,
    `date -s @$(($(date +%s) - 3600)) && printf '127.0.0.1 localhost\\n127.0.1.1 %s mine\\n' $(hostname) > /etc/hosts`,
  )
  await freezeGuest(agent, { timeoutMs })
  const machineId = randomBytes(16).toString('hex')
  const sentAt = performance.now()
  const identified = await identifyGuest(
    agent,
    {
      hostname: 'born-again',
      machineId,
      port: port + 7,
      entropy: randomBytes(64),
      setsClock: true,
      env: { BANDSOX_ID: 'sbx_new' },
      restored: true,
    },
    { timeoutMs },
  )
  t.diagnostic(
    `identify, with a hook: ${Math.round(performance.now() - sentAt)} ms, in the guest ${JSON.stringify(identified.stages)}`,
  )
  assert.deepEqual([identified.failures, identified.port], [[], port + 7])
  const { vsock } = await askLinks(agent)
  if (vsock.device) {
    assert.equal(vsock.port, port + 7)
    const old = linkTo(port, 'vsock')
    t.after(() => old.close())
    await assert.rejects(askLinks(old), 'nobody listens where the former machine did')
  }
  const moved = vsock.device ? linkTo(port + 7, 'vsock') : linkTo(port + 7, 'serial')
  t.after(() => moved.close())
  const says = async (command: string) => (await run(moved, command)).trim()
  assert.equal(await says('hostname; cat /etc/hostname; echo $HOSTNAME'), 'born-again\nborn-again\nborn-again')
  assert.match(await says('cat /etc/hosts'), /^127\.0\.1\.1\s+born-again mine$/m)
  assert.equal(await says('cat /etc/machine-id'), machineId)
  assert.equal(await says('echo $BANDSOX_ID; cat /root/told'), 'sbx_new\nrestore sbx_new born-again')
  const before = Date.now()
  const guestMs = Number(await says('date +%s')) * 1000
  assert.ok(guestMs > before - 2_000 && guestMs < Date.now() + 2_000, `the guest's clock is ${guestMs - before} ms off`)

  const jobs = await listGuestJobs(moved, { timeoutMs })
  const job = jobs.find(({ ended }) => !ended)
  assert.ok(job)
  await until(
    async () => (await listGuestJobs(moved, { timeoutMs })).some(({ to }) => to > 1_000_000),
    'it to print all that it has',
    60_000,
  )
  const taken = attachToJob(async () => moved, job.job)
  let seen = ''
  for await (const { data } of taken.output) {
    seen += Buffer.from(data).toString()
    if (seen.endsWith('line 100000\n')) break
  }
  assert.ok(seen.endsWith('line 99999\nline 100000\n'))

  const times: number[] = []
  for (let round = 0; round < 5; round++) {
    const { stages } = await identifyGuest(
      moved,
      {
        hostname: `again-${round}`,
        machineId: randomBytes(16).toString('hex'),
        entropy: randomBytes(64),
        setsClock: true,
        env: { BANDSOX_ID: `${round}` },
      },
      { timeoutMs },
    )
    times.push(Object.values(stages).reduce((sum, ms) => sum + ms, 0))
    if (round === 4) t.diagnostic(`stages: ${JSON.stringify(stages)}`)
  }
  t.diagnostic(`identify, without hooks, in the guest: ${times.map((ms) => ms.toFixed(1)).join(', ')} ms`)
  agent.close()
  await sandbox.stop()
})

async function run(agent: Agent, command: string): Promise<string> {
  const { exitCode, stdout, stderr } = await startJob(async () => agent, { shell: command }).collect()
  assert.equal(exitCode, 0, stderr)
  return stdout
}
