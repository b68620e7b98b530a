/**
 * Saves the state of a QEMU that stands still: it sends the stream of a migration to a socket, where a tool of the shim's parts the guest's
 * memory from all else (guest/internal/shim/qemustate). So QEMU needs no right to write anywhere, and one pass makes what is mapped later.
 */
import { randomUUID } from 'node:crypto'
import { existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, messageOf, printableLine } from '@bandsox/sdk'
import { z } from 'zod'
import { runCommand } from '../../process/run.js'
import { readShimConfig, SANDBOX_MARK } from '../../process/shim.js'
import { requireRoom } from '../state-folder.js'
import type { MachineState } from '../vmm.js'
import { type Qmp, withQmp } from './qmp.js'
import { forgetSaved, keepSaved, linkSavedAgain, STATE_FILES, stateIn } from './state-files.js'

/** The tool is a process to be started, on a host that may be busy. */
const LISTEN_PATIENCE_MS = 10_000
const LISTEN_POLL_MS = 2
/** The tool watches the progress, and ends with the stream, mostly: then QEMU has a moment to say so itself. */
const PROGRESS_POLL_MS = 200
const END_POLL_MS = 5
/** What the tool still writes when QEMU has sent all, or has given up. */
const TOOL_END_MS = 30_000
/** The most that QEMU takes, in bytes per second: as fast as it goes. */
const NO_BANDWIDTH_LIMIT = 0x7fffffffffff
const CUT_MS = 1_000
const CANCEL_PATIENCE_MS = 10_000
/** What QEMU says of a migration that is none, or none any more. */
const AT_REST: readonly string[] = ['none', 'completed', 'failed', 'cancelled']
const MIB = 1024 * 1024
/** What the tool says of a stream that breaks off: why, QEMU knows. */
const CUT = 'stream-cut'

const statusSchema = z.object({ status: z.string() })
/** Without a `status` there has been none. */
const migrationSchema = z.object({ status: z.string().optional(), 'error-desc': z.string().optional() })
const failureSchema = z.object({ event: z.literal('failed'), code: z.string().optional(), message: z.string() })

export interface Saving {
  shimPath: string
  directory: string
  qmpSocket: string
  signal?: AbortSignal | undefined
}

/**
 * @throws `wrong-state` when the machine runs; `vmm-control` with what QEMU says; system errors such as `ENOSPC`; `signal.reason`. Nothing is left in the
 *   folder then, and the machine stands still as before.
 */
export async function saveState(saving: Saving, folder: string): Promise<MachineState> {
  saving.signal?.throwIfAborted()
  await requireRoom(folder, Object.values(STATE_FILES))
  const { status } = statusSchema.parse(await withQmp(saving.qmpSocket, (qmp) => qmp.execute('query-status')))
  if (status === 'running')
    throw new BandSoxError('wrong-state', 'cannot save the state of a machine that runs', { hint: 'pause it first' })
  if (status === 'postmigrate') {
    if (await linkSavedAgain(saving.directory, folder)) return stateIn(folder)
    throw new BandSoxError('wrong-state', 'QEMU saves the state of a machine only once before it runs again', {
      hint: 'resume it, and pause it again',
    })
  }
  await forgetSaved(saving.directory) // one of an earlier pause; from here on it would be wrong
  const state = stateIn(folder)
  try {
    await sendState(saving, state)
    await keepSaved(saving.directory, state)
    return state
  } catch (error) {
    for (const file of Object.values(state)) await rm(file, { force: true })
    throw error
  }
}

async function sendState({ shimPath, directory, qmpSocket, signal }: Saving, state: MachineState): Promise<void> {
  const socket = `save-${randomUUID().slice(0, 8)}.sock`
  const enough = new AbortController()
  // Without its tool QEMU hears that nobody wants the state any more: a guest that has taken it over could send it for hours.
  const either = signal === undefined ? enough.signal : AbortSignal.any([signal, enough.signal])
  const tool = startTool({ shimPath, directory, socket, state, signal: either })
  try {
    await tool.listening()
    await withQmp(qmpSocket, (qmp) => migrate(qmp, socket))
    const failure = await endOfMigration(qmpSocket, tool)
    if (failure === undefined) return await within(tool.done, enough)
    // It ends with the stream, and knows more if it was what failed; unless QEMU never came.
    await tool.endedWithin(CUT_MS)
    const said = tool.hasEnded() ? await tool.failure() : undefined
    if (said !== undefined && !said.isCut) throw said.error
    throw new BandSoxError('vmm-control', `QEMU could not save the state of its machine: ${printableLine(failure)}`)
  } finally {
    enough.abort()
    await tool.failure()
    // Of a tool that was killed.
    for (const name of [socket, `${socket}.new`]) await rm(path.join(directory, name), { force: true })
  }
}

async function migrate(qmp: Qmp, socket: string): Promise<void> {
  await qmp.execute('migrate-set-capabilities', { capabilities: [{ capability: 'x-ignore-shared', state: false }] })
  // It stands still anyway. Within what may be sent at the end QEMU neither answers nor can be cancelled without harm: next to nothing.
  await qmp.execute('migrate-set-parameters', { 'max-bandwidth': NO_BANDWIDTH_LIMIT, 'downtime-limit': 1 })
  await qmp.execute('migrate', { uri: `unix:${socket}` })
}

/**
 * Ends a saving whose process has died, should QEMU still be at it: a machine that ran on meanwhile would be stopped at its end.
 *
 * @throws `vmm-control`.
 */
export async function giveSavingUp(qmp: Qmp): Promise<void> {
  const deadline = performance.now() + CANCEL_PATIENCE_MS
  for (let isCancelled = false; ; ) {
    const { status = 'none' } = migrationSchema.parse(await qmp.execute('query-migrate'))
    if (AT_REST.includes(status)) return
    if (!isCancelled) await qmp.execute('migrate_cancel')
    isCancelled = true
    if (performance.now() > deadline)
      throw new BandSoxError(
        'vmm-control',
        `QEMU did not give the saving of its state up within ${CANCEL_PATIENCE_MS} ms`,
      )
    await delay(END_POLL_MS)
  }
}

/** @returns Why it failed; undefined when it did not. */
async function endOfMigration(qmpSocket: string, tool: Tool): Promise<string | undefined> {
  for (;;) {
    if (tool.hasEnded()) await delay(END_POLL_MS)
    else await tool.endedWithin(PROGRESS_POLL_MS)
    const { status, 'error-desc': reason } = migrationSchema.parse(
      await withQmp(qmpSocket, async (qmp) => {
        if (tool.hasEnded() && (await tool.failure()) !== undefined) await qmp.execute('migrate_cancel')
        return await qmp.execute('query-migrate')
      }),
    )
    if (status === 'completed') return undefined
    if (status === 'failed' || status === 'cancelled') return reason ?? `the migration has ${status}`
  }
}

async function within(done: Promise<void>, enough: AbortController): Promise<void> {
  const timer = setTimeout(
    () => enough.abort(new BandSoxError('vmm-control', `the state was not written within ${TOOL_END_MS} ms`)),
    TOOL_END_MS,
  )
  try {
    await done
  } finally {
    clearTimeout(timer)
  }
}

interface Tool {
  /** Resolves when QEMU can connect. @throws What ended the tool before. */
  listening(): Promise<void>
  hasEnded(): boolean
  endedWithin(timeoutMs: number): Promise<void>
  /** Resolves when it has ended: with why it failed, or undefined when it did not. */
  failure(): Promise<ToolFailure | undefined>
  done: Promise<void>
}

interface ToolFailure {
  error: unknown
  isCut: boolean
}

function startTool({
  shimPath,
  directory,
  socket,
  state,
  signal,
}: {
  shimPath: string
  directory: string
  socket: string
  state: MachineState
  signal: AbortSignal
}): Tool {
  let failed: ToolFailure | undefined
  let hasEnded = false
  const done = runTool(shimPath, directory, socket, state, signal)
  const ended = done
    .catch((error: unknown) => {
      failed = { error, isCut: error instanceof StreamCut }
    })
    .then(() => {
      hasEnded = true
    })
  return {
    async listening() {
      const deadline = performance.now() + LISTEN_PATIENCE_MS
      while (!existsSync(path.join(directory, socket))) {
        if (failed !== undefined) throw failed.error
        if (performance.now() > deadline)
          throw new BandSoxError('vmm-control', `cannot save a state: no ${socket} within ${LISTEN_PATIENCE_MS} ms`)
        await delay(LISTEN_POLL_MS)
      }
    },
    hasEnded: () => hasEnded,
    async endedWithin(timeoutMs) {
      const limit = new AbortController()
      const late = delay(timeoutMs, undefined, { signal: limit.signal }).catch(() => undefined) // cut short below
      await Promise.race([ended, late])
      limit.abort()
    },
    async failure() {
      await ended
      return failed
    },
    done,
  }
}

class StreamCut extends BandSoxError {}

async function runTool(
  shimPath: string,
  directory: string,
  socket: string,
  state: MachineState,
  signal: AbortSignal,
): Promise<void> {
  const config = await readShimConfig(directory)
  if (config === undefined)
    throw new BandSoxError('vmm-failed', `the machine in ${directory} has no shim.json: it is none of ours`)
  const { sandbox, vmm } = config
  let said = ''
  try {
    await runCommand(
      [
        shimPath,
        'split-state',
        ...[socket, String(vmm.uid ?? -1)],
        ...[state.memory, state.devices, String(memoryMibOf(vmm.argv) * MIB)],
      ],
      {
        cwd: directory,
        env: { [SANDBOX_MARK]: sandbox },
        signal,
        quote: (stdout, stderr) => {
          said = stdout
          return stderr || stdout
        },
      },
    )
  } catch (error) {
    const failure = failureSchema.safeParse(parseOrUndefined(said))
    if (!failure.success) throw error
    throw failureOf(failure.data)
  }
}

function failureOf({ code, message }: z.infer<typeof failureSchema>): Error {
  if (code === CUT) return new StreamCut('vmm-control', message)
  if (code !== undefined) return Object.assign(new Error(`${code}: ${message}`), { code })
  return new BandSoxError('vmm-control', `cannot save the state of the machine: ${message}`)
}

/** As `qemuCommandLine` has put it, which is what the stream has to hold. */
function memoryMibOf(argv: readonly string[]): number {
  const [, mib] = /^(\d+)M$/.exec(argv[argv.indexOf('-m') + 1] ?? '') ?? []
  if (mib === undefined) throw new BandSoxError('internal', 'the memory of the machine is not on its command line')
  return Number(mib)
}

function parseOrUndefined(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch (error) {
    if (error instanceof SyntaxError) return undefined // not JSON is one more shape that the schema refuses
    throw new BandSoxError('internal', messageOf(error), { cause: error })
  }
}
