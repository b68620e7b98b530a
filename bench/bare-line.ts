/**
 * A machine whose serial line bench-guest has for itself: that of a sandbox without vsock, by the same command line, but nobody is
 * between the VMM's end of the line and us. A shim that was told of the line would speak its protocol there.
 */
import { execFile } from 'node:child_process'
import { chown } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import type { HostTools } from '../packages/bandsox/src/vmm/host.js'
import type { Machine, MachineSpec, SerialLine } from '../packages/bandsox/src/vmm/vmm.js'
import { BareConnection } from './bare-connection.js'
import {
  AGENT_SERIAL_SOCKET,
  accelerationBy,
  attachMachine,
  cgroupSupport,
  consoleConfig,
  EVENTS_SOCKET,
  findQemu,
  machineCgroup,
  probeKvm,
  qemuCommandLine,
  SANDBOX_MARK,
  startShim,
} from './internals.js'

export type BareLine = SerialLine

/** As the driver has them. */
const MAX_FILES = 4096
const MAX_PROCESSES = 1024
/** The driver's arguments for the console, whose FIFOs the shim reads. */
const SHIM_CONSOLE = 'stdio,id=console,signal=off'
/** The same kind of FIFOs, with us at their other end: QEMU adds `.in` and `.out`. */
const UART_FIFOS = 'uart'

const run = promisify(execFile)

export async function startOnLine(
  tools: HostTools,
  spec: MachineSpec,
  line: BareLine,
): Promise<{ machine: Machine; connect(timeoutMs: number): Promise<BareConnection> }> {
  const [qemu, kvm, groups] = await Promise.all([findQemu(tools), probeKvm(tools), cgroupSupport()])
  const accelerator = accelerationBy(kvm)
  const choice = { program: qemu.program, accelerator: accelerator.kind, vsock: null, serialLine: line }
  const { argv, files } = qemuCommandLine(spec, choice)
  const fifos = {
    toGuest: path.join(spec.directory, `${UART_FIFOS}.in`),
    fromGuest: path.join(spec.directory, `${UART_FIFOS}.out`),
  }
  if (line === 'uart') {
    for (const fifo of Object.values(fifos)) {
      await run('mkfifo', ['-m', '600', fifo])
      if (process.getuid?.() === 0) await chown(fifo, spec.uid, spec.uid)
    }
  }
  await startShim(tools.shim, spec.directory, {
    version: 1,
    sandbox: spec.sandboxId,
    vmm: {
      argv: argv.map((word, index) => bareArgument(word, argv[index - 1], line)),
      env: { [SANDBOX_MARK]: spec.sandboxId },
      ...(process.getuid?.() === 0 && {
        ...{ uid: spec.uid, gid: spec.uid, maxProcesses: MAX_PROCESSES },
        groups: accelerator.kind === 'kvm' ? accelerator.groups : [],
      }),
      maxFiles: MAX_FILES,
    },
    files,
    console: consoleConfig,
    monitor: { kind: 'qmp', socket: EVENTS_SOCKET },
    ...(groups.usable && { cgroup: machineCgroup(groups.parent, spec, accelerator.kind) }),
    remove: [],
  })
  const connect = async (timeoutMs: number) => {
    const signal = AbortSignal.timeout(timeoutMs)
    return line === 'uart'
      ? await BareConnection.overFifos(fifos, signal)
      : await BareConnection.overPort(path.join(spec.directory, AGENT_SERIAL_SOCKET), signal)
  }
  return { machine: await attachMachine(tools.shim, spec.directory), connect }
}

function bareArgument(word: string, before: string | undefined, line: BareLine): string {
  if (before === '-append') return `${word} bandsox.bench=line`
  if (line === 'uart' && word === SHIM_CONSOLE) return `pipe,id=console,path=${UART_FIFOS}`
  return word
}
