/** Many machines of one saved state at once: each is another one in all that must never be twice. */
import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { type BandSox, openBandSox, type Sandbox } from 'bandsox'
import { publishedImage, testImagesFolder } from './support/published-images.js'
import { temporaryStorage, until } from './support/storage.js'
import { missingTools } from './support/test-tools.js'

const CLONES = 20
const IMAGE = 'localhost/python:1'
const MAX_CLOCK_MS = 50
const ROOT = { user: '0:0', cwd: '/' }

/** Runs since before the snapshot: writes down what a client has chosen in its hello, and hangs up. */
const SERVER = `import socket
server = socket.create_server(("127.0.0.1", 4433))
print("listening", flush=True)
while True:
    client, _ = server.accept()
    hello = client.recv(4096)
    assert hello[0] == 22 and hello[5] == 1, hello
    with open("/run/hello", "w") as file:
        file.write(hello[11:43].hex())
    client.close()
`

/** All that must differ, a line each. */
const PROBE = `import random, socket, ssl
random.seed()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
try:
    context.wrap_socket(socket.create_connection(("127.0.0.1", 4433)))
    raise SystemExit("the server has no certificate")
except OSError:
    pass
print("urandom", open("/dev/urandom", "rb").read(32).hex())
print("uuid", open("/proc/sys/kernel/random/uuid").read().strip())
print("machine-id", open("/etc/machine-id").read().strip())
print("hostname", socket.gethostname())
print("random", random.getrandbits(256))
print("hello", open("/run/hello").read())
`

const FORMS: Record<string, RegExp> = {
  urandom: /^[0-9a-f]{64}$/,
  uuid: /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/,
  'machine-id': /^[0-9a-f]{32}$/,
  hostname: /^sbx-[a-z2-7]{10}$/,
  random: /^\d{60,78}$/,
  hello: /^[0-9a-f]{64}$/,
}

async function pythonImage(bandsox: BandSox): Promise<void> {
  const { layout } = await publishedImage('debian-python', testImagesFolder)
  await bandsox.images.import(layout, { reference: IMAGE })
}

async function probe(sandbox: Sandbox): Promise<Record<string, string>> {
  const { stdout, stderr, exitCode } = await sandbox.exec(['python3', '/root/probe.py'], ROOT).collect()
  assert.equal(exitCode, 0, stderr)
  return Object.fromEntries(
    stdout
      .trim()
      .split('\n')
      .map((line) => line.split(' ') as [string, string]),
  )
}

/**
 * How far the guest's clock is from ours for certain, in ms: what the way there and back took may explain no more.
 * One command is asked often, as to begin one takes long.
 */
async function clockError(sandbox: Sandbox): Promise<number> {
  let answered: (guestMs: number) => void = () => undefined
  let best = Number.POSITIVE_INFINITY
  async function* questions() {
    for (let round = 0; round < 8; round++) {
      const answer = new Promise<number>((resolve) => (answered = resolve))
      const asked = Date.now()
      yield Buffer.from('\n')
      const guestMs = await answer
      const now = Date.now()
      best = Math.min(best, Math.max(0, guestMs - now, asked - guestMs))
    }
  }
  const loop = 'while read -r line; do echo $EPOCHREALTIME; done'
  const job = sandbox.exec(['bash', '-c', loop], { ...ROOT, input: questions() })
  for await (const { data } of job.output)
    answered(Number(Buffer.from(data).toString().trim().replace(',', '.')) * 1000)
  return best
}

test(`${CLONES} machines of one snapshot at once differ in all that must never be twice`, {
  skip: missingTools(),
}, async (t) => {
  await using storage = await temporaryStorage()
  const folder = await mkdtemp(path.join(tmpdir(), 'bandsox-clones-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const configFile = path.join(folder, 'config.json')
  await writeFile(configFile, JSON.stringify({ images: { limits: { allowDevices: true } } }))
  await using bandsox = await openBandSox({ storage: storage.folder, configFile })
  await pythonImage(bandsox)
  t.diagnostic(`image at ${Math.round(performance.now())} ms`)
  const source = await bandsox.create(IMAGE, { memoryMib: 128, diskMib: 64 })
  await source.files.write('/root/server.py', SERVER)
  await source.files.write('/root/probe.py', PROBE)
  await source.exec('setsid python3 /root/server.py > /run/server 2>&1 < /dev/null &', ROOT).wait()
  await until(async () => Buffer.from(await source.files.read('/run/server')).includes('listening'), 'the server')
  const all = [await probe(source)] // its generators have been used, and are what all go on from
  const { id, pauseMs, bytes } = await source.snapshot()
  t.diagnostic(`stood still for ${pauseMs} ms: ${JSON.stringify(bytes)}`)

  const startedAt = performance.now()
  const clones = await Promise.all(Array.from({ length: CLONES }, () => bandsox.snapshots.restore(id)))
  t.diagnostic(`${CLONES} restored in ${Math.round(performance.now() - startedAt)} ms`)
  assert.deepEqual(new Set((await bandsox.snapshots.get(id)).usedBy), new Set(clones.map((clone) => clone.id)))
  all.push(...(await Promise.all(clones.map(probe))))
  t.diagnostic(`probed after ${Math.round(performance.now() - startedAt)} ms`)
  for (const [name, form] of Object.entries(FORMS)) {
    const values = all.map((each) => each[name] ?? '')
    for (const value of values) assert.match(value, form, name)
    assert.equal(new Set(values).size, CLONES + 1, `${name} of ${CLONES + 1} machines: ${values.join(' ')}`)
  }
  assert.deepEqual(
    all.map(({ hostname }) => hostname),
    [source, ...clones].map((each) => each.id.replace('_', '-')),
  )
  // One after the other: what there is to be measured is the clock, not how busy the host is.
  const errors: number[] = []
  for (const clone of clones) errors.push(await clockError(clone))
  t.diagnostic(`clocks apart by ${errors.map((error) => error.toFixed(1)).join(', ')} ms`)
  assert.ok(Math.max(...errors) <= MAX_CLOCK_MS, `apart by ${Math.max(...errors)} ms`)
  await Promise.all([source, ...clones].map((each) => each.delete({ force: true })))
  await bandsox.snapshots.delete(id)
  await storage.assertNothingLeft()
})
