/** What people expect of a Linux machine, in the built-in image. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { openBandSox, type Sandbox } from 'bandsox'
import { type TestStorage, temporaryStorage } from './support/storage.js'

let storage: TestStorage
let sandbox: Sandbox

before(async () => {
  storage = await temporaryStorage()
  sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base', {
    name: 'guest-test',
    vcpu: 2,
  })
})

after(async () => {
  await sandbox?.[Symbol.asyncDispose]()
  await storage?.[Symbol.asyncDispose]()
})

const inGuest = async (command: string): Promise<string> => (await sandbox.exec(command).collect()).stdout

test('the usual file systems and devices are there', async () => {
  const mounts = await inGuest('cut -d" " -f2,3 /proc/mounts')
  for (const mount of [
    '/ overlay',
    '/proc proc',
    '/sys sysfs',
    '/dev devtmpfs',
    '/dev/pts devpts',
    '/dev/shm tmpfs',
    '/sys/fs/cgroup cgroup2',
  ]) {
    assert.ok(mounts.split('\n').includes(mount), `${mount} in\n${mounts}`)
  }
  assert.equal(
    await inGuest('echo x > /dev/null; head -c 3 /dev/zero | wc -c; ls /dev/fd/0 /dev/stdin'),
    '3\n/dev/fd/0\n/dev/stdin\n',
  )
  assert.equal(await inGuest('stat -c %a /tmp /dev/shm'), '1777\n1777\n')
})

test('name, loopback, clock, language and limits are sane', async () => {
  assert.equal(
    await inGuest('hostname; cat /etc/hostname; ping -c1 -W2 guest-test >/dev/null && echo reachable'),
    'guest-test\nguest-test\nreachable\n',
  )
  assert.equal(await inGuest('ping -c 1 -W 2 127.0.0.1 > /dev/null && echo up'), 'up\n')
  assert.equal(await inGuest('date +%Z; echo $LANG'), 'UTC\nC.UTF-8\n')
  const clockError = Math.abs(Number(await inGuest('date +%s')) - Date.now() / 1000)
  assert.ok(clockError < 5, `the clock is off by ${clockError} s`)
  assert.equal(await inGuest('ulimit -n; ulimit -Hn; ulimit -c; nproc'), '65536\n1048576\n0\n2\n')
})

test('time passes in the guest as it does outside', async () => {
  const startedAt = performance.now()
  await inGuest('sleep 2')
  const tookMs = performance.now() - startedAt
  assert.ok(tookMs > 1_900 && tookMs < 4_000, `two seconds took ${tookMs} ms`)
})

test('the writable layer takes what an image folder may meet: renames, hard links, removal', async () => {
  assert.equal(await inGuest('mv /home /home2 && ls /home2 && mv /home2 /home && ls -d /home'), 'sandbox\n/home\n')
  assert.equal(
    await inGuest(
      'cd /etc && ln passwd passwd2 && echo "x:x:9:9::/:/bin/sh" >> passwd2 && tail -n 1 passwd && stat -c %h passwd && rm passwd2',
    ),
    'x:x:9:9::/:/bin/sh\n2\n',
  )
  assert.equal(await inGuest('rm -r /home/sandbox && ls -A /home | wc -l && mkdir /home/sandbox'), '0\n')
})

test('images without a container engine get no folders for one', async () => {
  assert.equal(
    await inGuest('ls -d /var/lib/docker /var/lib/containerd /var/lib/containers 2>/dev/null | wc -l'),
    '0\n',
  )
})

test('orphans are reaped', async () => {
  await inGuest('for i in 1 2 3 4 5; do (sleep 0.2 &) ; done; sleep 1')
  assert.equal(await inGuest("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"), '0\n')
})

test('the agent answers while commands eat all the memory, and afterwards', async () => {
  const hog = sandbox.exec(['awk', 'BEGIN { for (;;) kept[i++] = sprintf("%10000s", i) }'], { timeoutMs: 15_000 })
  const ended = hog.wait()
  for (let asked = 0; asked < 5; asked++) assert.equal(await inGuest('echo alive'), 'alive\n')
  // By the kernel's OOM killer or by the time limit, whichever comes first: without swap the kernel thrashes for a while.
  assert.equal((await ended).signal, 'SIGKILL')
  assert.equal(await inGuest('echo alive'), 'alive\n')
})
