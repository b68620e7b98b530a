/** `init` and `doctor`, as a user runs them. */
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import { published, release } from '../../sandbox/init/testing/release.js'
import { fileServer } from '../../testing/file-server.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'

const MAIN = fileURLToPath(new URL('../main.js', import.meta.url))
const SKIP = ['--skip-kernel', '--skip-image', '--skip-disk']

function bandsox(storage: string, ...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  return new Promise((resolve, reject) => {
    const argv = [MAIN, '--storage', storage, ...args]
    execFile(process.execPath, argv, { timeout: 20_000 }, (error, stdout, stderr) => {
      if (error === null) resolve({ status: 0, stdout, stderr })
      else if (typeof error.code === 'number') resolve({ status: error.code, stdout, stderr })
      else reject(error)
    })
  })
}

interface Doctor {
  checks: { subject: string; verdict: string; found: string; hint?: string }[]
}

describe('bandsox init', { concurrency: 2 }, () => {
  it('installs Firecracker, says so, and doctor finds it', async (t) => {
    const server = await fileServer(t, published(release()))
    const storage = path.join(await temporaryFolder(t), 'storage')
    const first = await bandsox(storage, 'init', '--firecracker-url', server.url, ...SKIP)
    assert.equal(first.status, 0, first.stderr)
    const program = path.join(storage, 'vmm/firecracker-1.16.1/firecracker')
    assert.match(first.stdout, /^firecracker {2}made in \S+ m?s: 1\.16\.1, /)
    assert.ok(first.stdout.includes(program), first.stdout)
    assert.ok(first.stdout.endsWith(`Host ready: ${storage}\n`), first.stdout)
    assert.match(first.stderr, /^fetching http:.*\/firecracker-v1\.16\.1-\w+\.tgz$/m)
    const second = await bandsox(storage, '--json', 'init', '--firecracker-url', server.url, ...SKIP)
    const [step, host] = second.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>)
    assert.equal(step?.['made'], false)
    assert.deepEqual([host?.['kind'], host?.['kernel']], ['host', null])
    const { checks } = JSON.parse((await bandsox(storage, '--json', 'doctor')).stdout) as Doctor
    const { verdict, found } = checks.find(({ subject }) => subject === 'firecracker') ?? assert.fail()
    assert.deepEqual([verdict, found.startsWith(`1.16.1, ${program}; jailer: ${storage}`)], ['ok', true], found)
    assert.ok(!checks.some(({ subject }) => subject === 'smt'))
  })

  it('refuses, explains and exits as its errors say', async (t) => {
    const server = await fileServer(t, {})
    const storage = path.join(await temporaryFolder(t), 'storage')
    const missing = await bandsox(storage, 'init', '--firecracker-url', server.url, ...SKIP)
    assert.equal(missing.status, 66)
    assert.match(
      missing.stderr,
      /^bandsox: cannot get Firecracker 1\.16\.1: .*\nhint: .*--firecracker-sha256 HEX; or place /m,
    )
    await server.close()
    const offline = await bandsox(storage, 'init', '--firecracker-url', server.url, ...SKIP)
    assert.equal(offline.status, 69)
    assert.match(offline.stderr, /ECONNREFUSED.*\nhint: without the network: place /m)
    const mistake = await bandsox(storage, 'init', '--firecracker-url', 'here.tgz')
    assert.equal(mistake.status, 64)
    assert.match(mistake.stderr, /hint: a file of this host is written file:\/\/\//)
  })

  it('ends with a Ctrl-C, and goes on the next time', async (t) => {
    const one = release()
    const server = await fileServer(t, published(one))
    server.pauseMs = 20
    const storage = path.join(await temporaryFolder(t), 'storage')
    const argv = [MAIN, '--storage', storage, 'init', '--firecracker-url', server.url, ...SKIP]
    const child = spawn(process.execPath, argv, { stdio: 'ignore' })
    t.after(() => void child.kill('SIGKILL'))
    const part = path.join(storage, 'downloads', `${one.sha256}.part`)
    while (((await stat(part).catch(() => undefined))?.size ?? 0) === 0)
      await new Promise((resolve) => setTimeout(resolve, 5))
    child.kill('SIGINT')
    assert.deepEqual(await once(child, 'close'), [130, null])
    assert.deepEqual(await readdir(path.join(storage, 'downloads')), [`${one.sha256}.part`])
    server.pauseMs = 0
    const again = await bandsox(storage, 'init', '--firecracker-url', server.url, ...SKIP)
    assert.equal(again.status, 0, again.stderr)
    assert.match(again.stderr, /^going on with http:/m)
    assert.match(server.requests.at(-1) ?? '', / bytes=[1-9]\d*-$/)
  })

  it('may leave out everything; then doctor has the recommendations, of a host alone', async (t) => {
    const storage = path.join(await temporaryFolder(t), 'storage')
    await bandsox(storage, 'init', '--skip-firecracker', ...SKIP)
    const { stdout } = await bandsox(storage, '--json', 'doctor', '--production')
    const { checks } = JSON.parse(stdout) as Doctor
    const subjects = checks.map(({ subject }) => subject)
    for (const subject of ['smt', 'ksm', 'swap', 'microcode', 'cgroups', 'huge pages'])
      assert.ok(subjects.includes(subject), subject)
    assert.equal((await bandsox(storage, 'doctor', '--production', 'web')).status, 64)
  })
})
