/** What tests of saved states share: a program that counts, a look at the guest's own commands, damage, and what may not be left. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmod, open, rename, stat, utimes } from 'node:fs/promises'
import path from 'node:path'
import type { Sandbox } from 'bandsox'
import { readConfig } from 'bandsox/internal/config.js'
import type { Agent } from 'bandsox/internal/guest/agent.js'
import { agentOf } from 'bandsox/internal/sandbox/agent-of.js'
import type { Host } from 'bandsox/internal/sandbox/host.js'
import { LocalBandSox, type LocalConfig, openHost } from 'bandsox/internal/sandbox/local-bandsox.js'
import { namesIn, processesIn, until } from './storage.js'

/** Prints what it counts, and appends it to a file. */
export const COUNTER = 'i=0; while :; do i=$((i+1)); echo $i >> /root/count; echo $i; sleep 0.02; done'

export interface Opened extends AsyncDisposable {
  bandsox: LocalBandSox
  /** What the library was warned of. */
  warnings: string[]
}

/** As `openBandSox`, with what cannot be said there. */
export async function openWith(storage: string, over: Partial<LocalConfig> = {}): Promise<Opened> {
  const warnings: string[] = []
  const warn = (text: string) => void warnings.push(text)
  const bandsox = await LocalBandSox.open({ ...readConfig(process.env, { storage }), warn, ...over })
  return { bandsox, warnings, [Symbol.asyncDispose]: () => bandsox[Symbol.asyncDispose]() }
}

export async function output(sandbox: Sandbox, command: string): Promise<string> {
  const { exitCode, stdout, stderr } = await sandbox.exec(command).collect()
  assert.equal(exitCode, 0, stderr)
  return stdout.trim()
}

/** How far {@link COUNTER} has come, without a gap and without a number twice. */
export async function counted(sandbox: Sandbox): Promise<number> {
  const text = Buffer.from(await sandbox.files.read('/root/count')).toString()
  const lines = text.slice(0, text.lastIndexOf('\n')).split('\n') // the last one may be half written
  assert.deepEqual(
    lines,
    lines.map((_, index) => String(index + 1)),
    'it counts on without a gap',
  )
  return lines.length
}

export async function countsOn(sandbox: Sandbox): Promise<void> {
  const before = await counted(sandbox)
  await until(async () => (await counted(sandbox)) > before, 'the counter to go on')
}

/** The parts below a sandbox, beside the sandbox's own. */
export async function belowOf(storage: string, id: string): Promise<{ host: Host; agent: Agent } & AsyncDisposable> {
  const host = await openHost({ ...readConfig(process.env, { storage }), warn: () => undefined })
  const record = await host.store.read(id)
  assert.ok(record)
  const agent = agentOf(host, record)
  return {
    host,
    agent,
    async [Symbol.asyncDispose]() {
      agent.close()
      host.store.close()
    },
  }
}

/** A file of one's own in place of a hard link to what others use as well. */
export async function unshare(file: string): Promise<void> {
  execFileSync('cp', ['--preserve=all', '--sparse=always', file, `${file}.own`])
  await rename(`${file}.own`, file)
}

/** Changes one bit of a file that is only read, and perhaps keeps what tells of it. Twice, and it is as it was. */
export async function flip(file: string, position: number, { keepsTime = false } = {}): Promise<void> {
  const { mode, atime, mtime } = await stat(file)
  await chmod(file, 0o600)
  {
    await using handle = await open(file, 'r+')
    const byte = Buffer.alloc(1)
    await handle.read(byte, 0, 1, position)
    byte[0] = (byte[0] ?? 0) ^ 0x10
    await handle.write(byte, 0, 1, position)
  }
  await chmod(file, mode & 0o777)
  if (keepsTime) await utimes(file, atime, mtime)
}

/** All that tells whether something was started, or left behind. */
export async function traces(storage: string): Promise<Record<string, unknown>> {
  const { store } = await openHost({ ...readConfig(process.env, { storage }), warn: () => undefined })
  const sandboxes = (await store.list()).map(({ id, state, cid, operation }) => [id, state.kind, cid, operation?.name])
  const snapshots = (await store.snapshots.all()).map(({ id, state }) => [id, state])
  store.close()
  return {
    sandboxes,
    snapshots,
    folders: namesIn(path.join(storage, 'vms')),
    snapshotFolders: namesIn(path.join(storage, 'snapshots')),
    processes: processesIn(storage)
      .map(({ program, cwd }) => `${program} ${cwd}`)
      .sort(),
  }
}

/** Does what must fail, and looks whether all is as it was. */
export async function leavesAllAsItWas(storage: string, work: () => Promise<void>): Promise<void> {
  // A shim ends just after it has said so, and its sandbox is gone by then.
  await until(() => processesIn(storage).every(({ cwd }) => !cwd.endsWith(' (deleted)')), 'what was deleted to end')
  const before = await traces(storage)
  await work()
  const settled = async () => JSON.stringify(await traces(storage)) === JSON.stringify(before)
  await until(settled, 'what has failed to be gone').catch(() => undefined) // the comparison says more
  assert.deepEqual(await traces(storage), before)
}
