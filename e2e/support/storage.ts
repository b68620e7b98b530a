/** Storage folders for tests: prepared once, shared by hard links, looked at afterwards. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readdirSync, readlinkSync, rmSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { workingFolder } from 'bandsox/internal/process/jailed-folder.js'
import { SandboxStore } from 'bandsox/internal/store/sandbox-store.js'

/** Set by scripts/test.mjs: a storage folder with kernel, image and disk, and no sandboxes of anybody else. */
const prepared = process.env['BANDSOX_TEST_STORAGE']
if (prepared === undefined) throw new Error('BANDSOX_TEST_STORAGE is not set: run the tests by npm test')

export interface TestStorage extends AsyncDisposable {
  readonly folder: string
  /** Fails when a process, a file, a socket or a number of any sandbox is still there. */
  assertNothingLeft(): Promise<void>
}

/** A storage folder of one's own; what runs in it is killed at the end, and the folder removed. */
export async function temporaryStorage(): Promise<TestStorage> {
  const folder = await mkdtemp(`${prepared}-`)
  execFileSync('cp', ['-al', ...['boot', 'images', 'disks'].map((name) => path.join(prepared as string, name)), folder])
  return {
    folder,
    assertNothingLeft: () => assertNothingLeft(folder),
    async [Symbol.asyncDispose]() {
      await endProcessesIn(folder)
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** A file system of `sizeMib` in memory with a storage folder on it, for who is root. */
export async function storageOfItsOwnSize(sizeMib: number): Promise<TestStorage> {
  const folder = await mkdtemp(`${prepared}-`)
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${sizeMib}m`, 'bandsox-test', folder])
  const sources = ['boot', 'images', 'disks'].map((name) => path.join(prepared as string, name))
  execFileSync('cp', ['-a', ...sources, folder])
  return {
    folder,
    assertNothingLeft: () => assertNothingLeft(folder),
    async [Symbol.asyncDispose]() {
      await endProcessesIn(folder)
      execFileSync('umount', ['--lazy', folder]) // the database's descriptors in this process last until they are collected
      rmSync(folder, { recursive: true })
    },
  }
}

async function endProcessesIn(folder: string): Promise<void> {
  for (const { pid } of processesIn(folder)) process.kill(pid, 'SIGKILL')
  await until(() => processesIn(folder).length === 0, 'processes of a removed storage folder to end')
}

async function assertNothingLeft(folder: string): Promise<void> {
  await until(() => processesIn(folder).length === 0, 'VMM, shim and vsock daemon to end').catch(() => undefined)
  assert.deepEqual(processesIn(folder), [], 'processes left behind')
  assert.deepEqual(namesIn(path.join(folder, 'vms')), [], 'sandbox folders left behind')
  const store = await SandboxStore.open(folder)
  const rows = await store.list()
  store.close()
  assert.deepEqual(rows, [], 'records, and with them CIDs and ports, left behind')
}

/** By their names, as {@link processesIn} gives them. */
export const VMM_PROGRAM = /^(qemu|firecracker)/

/** Whether the tests run on a real Firecracker, by what the environment asks for. */
export const isOnFirecracker = process.env['BANDSOX_VMM'] === 'firecracker'

/** For a test's `skip`: why it says nothing about a Firecracker. */
export const onlyOnQemu = (why: string): string | false => isOnFirecracker && `not on Firecracker: ${why}`

/** Living processes that work in a folder below this one: VMM, shim and vsock daemon run in the VM's own. */
export function processesIn(folder: string): { pid: number; program: string; cwd: string }[] {
  const found: { pid: number; program: string; cwd: string }[] = []
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      const { folder: cwd } = workingFolder(`${folder}/vms/`, name)
      if (cwd.startsWith(`${folder}/`))
        found.push({ pid: Number(name), program: path.basename(readlinkSync(`/proc/${name}/exe`)), cwd })
    } catch {
      // It has ended meanwhile, or is another user's or a kernel's: not one of ours.
    }
  }
  return found
}

export function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).sort()
  } catch {
    return [] // never made, so nothing is left in it
  }
}

/** Polls for what nobody announces, such as another process's end. */
export async function until(isTrue: () => boolean | Promise<boolean>, what: string, timeoutMs = 10_000): Promise<void> {
  const deadline = performance.now() + timeoutMs
  while (!(await isTrue())) {
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`)
    await delay(20)
  }
}
