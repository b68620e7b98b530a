/**
 * The other way to save a QEMU machine, to compare with: its memory lies in a shared file of its own from the start, so that its state is
 * saved without the memory (`x-ignore-shared`), whose file is copied. Clones, which map theirs privately, cannot be saved so.
 */

import { createWriteStream } from 'node:fs'
import { chmod, mkdir, mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { copySparse, LocalBandSox, readConfig, withQmp } from './internals.js'

const PROGRAM = 'qemu-system-x86_64'
const MEMORY = 'memory'
const POLL_MS = 2
const BLOCK_BYTES = 512

export interface SharedSave {
  /** Devices and processors. */
  stateMs: number
  /** Of the memory, sparse. */
  copyMs: number
  copiedBytes: number
}

/** @param times How often one sandbox is paused, saved and resumed. */
export async function measureSharedSaves(memoryMib: number, times: number): Promise<SharedSave[]> {
  // In memory, as a file on a disk would be written back all the time.
  const folder = await mkdtemp('/dev/shm/bandsox-bench-')
  try {
    await chmod(folder, 0o755)
    const searchPath = await qemuWithSharedMemory(folder, memoryMib)
    const { cliPath: _, ...config } = readConfig()
    await using bandsox = await LocalBandSox.open({
      ...config,
      ...{ templates: false, warn: console.error, searchPath: [searchPath, ...config.searchPath] },
    })
    await using sandbox = await bandsox.create('bandsox/base', { memoryMib, vsock: 'off' })
    const { directory } = await sandbox.info()
    const saves: SharedSave[] = []
    for (let save = 0; save < times; save++) {
      await sandbox.exec(['true']).wait()
      await sandbox.pause()
      saves.push(await saveOnce(directory, folder))
      await sandbox.resume()
    }
    return saves
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** A QEMU that has its machine's memory in a file, whatever it is told; as a program in a folder of the search path. */
async function qemuWithSharedMemory(folder: string, memoryMib: number): Promise<string> {
  const memory = path.join(folder, MEMORY)
  await writeFile(memory, '')
  await chmod(memory, 0o666) // it is opened by the VM's own user
  const bin = path.join(folder, 'bin')
  await mkdir(bin)
  const given = `memory-backend-ram,id=ram0,size=${memoryMib}M`
  const wanted = `memory-backend-file,id=ram0,size=${memoryMib}M,mem-path=${memory},share=on`
  const script = `#!/bin/sh
for word; do
  shift
  [ "$word" = "${given}" ] && word="${wanted}"
  set -- "$@" "$word"
done
exec /usr/bin/${PROGRAM} "$@"
`
  const program = path.join(bin, PROGRAM)
  await writeFile(program, script)
  await chmod(program, 0o755)
  return bin
}

async function saveOnce(directory: string, folder: string): Promise<SharedSave> {
  const socket = path.join(directory, 'shared.sock')
  const state = path.join(folder, 'state')
  const server = createServer()
  const received = new Promise<void>((resolve, reject) => {
    server.once('connection', (connection) => pipeline(connection, createWriteStream(state)).then(resolve, reject))
  })
  await new Promise<void>((resolve) => server.listen(socket, resolve))
  await chmod(socket, 0o777)
  const began = performance.now()
  await withQmp(path.join(directory, 'qmp.sock'), async (qmp) => {
    await qmp.execute('migrate-set-capabilities', { capabilities: [{ capability: 'x-ignore-shared', state: true }] })
    await qmp.execute('migrate-set-parameters', { 'max-bandwidth': 0x7fffffffffff })
    await qmp.execute('migrate', { uri: 'unix:shared.sock' })
    while (!isCompleted(await qmp.execute('query-migrate'))) await delay(POLL_MS)
  })
  await received
  const saved = performance.now()
  const copy = path.join(folder, 'copy')
  await copySparse(path.join(folder, MEMORY), copy)
  const copied = performance.now()
  server.close()
  const { blocks } = await stat(copy)
  for (const file of [copy, state, socket]) await rm(file, { force: true })
  return { stateMs: saved - began, copyMs: copied - saved, copiedBytes: blocks * BLOCK_BYTES }
}

const isCompleted = (answer: unknown): boolean =>
  typeof answer === 'object' && answer !== null && 'status' in answer && answer.status === 'completed'
