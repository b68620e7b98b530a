/** The processes beside a VM have no more rights than they need, as the host's kernel sees it. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs'
import { test } from 'node:test'
import { openBandSox } from 'bandsox'
import { onlyOnQemu, processesIn, temporaryStorage } from './support/storage.js'

const statusOf = (pid: number): Map<string, string> =>
  new Map(
    readFileSync(`/proc/${pid}/status`, 'utf8')
      .trim()
      .split('\n')
      .map((line): [string, string] => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1).trim()]),
  )

test('VMM and vsock daemon run without new privileges, the VMM under seccomp, each VM as a user of its own', {
  skip: onlyOnQemu('firecracker.test.ts says what it may'),
}, async () => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  await using first = await bandsox.create('bandsox/base')
  await using second = await bandsox.create('bandsox/base')
  const isRoot = process.getuid?.() === 0
  const users = new Set<string>()
  for (const sandbox of [first, second]) {
    const { vmmPid, directory } = await sandbox.info()
    assert.ok(vmmPid)
    const vmm = statusOf(vmmPid)
    assert.equal(vmm.get('NoNewPrivs'), '1')
    assert.equal(vmm.get('Seccomp'), '2', 'a seccomp filter is in force')
    assert.equal(vmm.get('CapEff'), '0000000000000000')
    assert.equal(vmm.get('CapPrm'), '0000000000000000')
    users.add(vmm.get('Uid') ?? '')
    if (isRoot) {
      assert.match(readFileSync(`/proc/${vmmPid}/limits`, 'utf8'), /Max processes +1024 +1024 /)
      assert.match(vmm.get('Uid') ?? '', /^19000\d+\s+19000\d+\s+19000\d+\s+19000\d+$/)
      // The group of /dev/kvm, where it needs one to open that; never root's.
      const kvmGroup = statSync('/dev/kvm', { throwIfNoEntry: false })?.gid ?? 0
      assert.ok(['', ...(kvmGroup === 0 ? [] : [String(kvmGroup)])].includes(vmm.get('Groups') ?? 'none'))
    }
    const environment = readFileSync(`/proc/${vmmPid}/environ`, 'utf8')
    assert.equal(environment, `BANDSOX_SANDBOX=${sandbox.id}\0`, 'nothing of our environment is passed on')
    for (const { pid, program } of processesIn(directory.replace(/\/[^/]+$/, ''))) {
      if (readlinkSync(`/proc/${pid}/cwd`) !== directory || !program.startsWith('vhost-device')) continue
      assert.equal(statusOf(pid).get('NoNewPrivs'), '1')
      assert.equal(statusOf(pid).get('Uid'), vmm.get('Uid'))
      assert.equal(readFileSync(`/proc/${pid}/environ`, 'utf8'), environment)
    }
    const open = readdirSync(`/proc/${vmmPid}/fd`).map((fd) => readlinkSync(`/proc/${vmmPid}/fd/${fd}`))
    const foreign = open.filter(
      (target) => target.startsWith('/') && !target.startsWith(directory) && !/^\/(dev|memfd|proc)/.test(target),
    )
    assert.deepEqual(foreign, [], 'no file outside of its own folder is open')
  }
  if (isRoot) assert.equal(users.size, 2)
})
