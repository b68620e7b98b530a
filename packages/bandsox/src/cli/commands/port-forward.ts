/** `port-forward`: ports of this host that lead into a sandbox, as long as the command runs. */
import { BandSoxError, messageOf, type PortForward, printable } from '@bandsox/sdk'
import type { Command } from 'commander'
import { type Context, contextOf } from '../context.js'

/** `undefined`: any that is free. */
interface Pair {
  hostPort: number | undefined
  guestPort: number
}

export function addPortForward(program: Command): void {
  program
    .command('port-forward')
    .argument('<vm>', 'id, id prefix or name')
    .argument('<ports...>', 'HOST:GUEST, or PORT for the same on both sides, or :GUEST for any free one of this host')
    .option('--address <address>', 'address of this host to listen on', '127.0.0.1')
    .description('pass connections to ports of this host on into a sandbox, until Ctrl-C; it needs no network')
    .action(async (vm: string, ports: string[], { address }: { address: string }, command: Command) => {
      const pairs = ports.map(parsePair)
      requireDifferent(pairs)
      const context = contextOf(command)
      const sandbox = await (await context.open()).get(vm)
      const forwards: PortForward[] = []
      try {
        for (const { hostPort, guestPort } of pairs) {
          const forward = await sandbox.forward({
            guestPort,
            hostAddress: address,
            ...(hostPort !== undefined && { hostPort }),
            onFailure: (error) => reportFailure(context, guestPort, error),
          })
          forwards.push(forward)
        }
        for (const each of forwards) reportForward(context, each)
        const { kind } = await sandbox.waitFor(['stopping', 'stopped', 'failed'], { signal: context.signal })
        throw new BandSoxError('wrong-state', `sandbox ${vm} is ${kind}: its ports are not forwarded any more`)
      } catch (error) {
        if (!context.signal.aborted) throw error // Ctrl-C is how this ends
      } finally {
        await Promise.all(forwards.map((each) => each.close()))
      }
    })
}

const PORT = /^\d{1,5}$/

/** @throws `bad-request`. */
export function parsePair(text: string): Pair {
  const parts = text.split(':')
  const [first = '', second] = parts
  const guest = second ?? first
  const isGood = parts.length <= 2 && isPort(guest) && (second === undefined || first === '' || isPort(first))
  if (!isGood)
    throw new BandSoxError(
      'bad-request',
      `${JSON.stringify(text)} is not HOST:GUEST, PORT or :GUEST, with ports from 1 to 65535`,
    )
  const host = second === undefined ? guest : first
  return { hostPort: host === '' ? undefined : Number(host), guestPort: Number(guest) }
}

const isPort = (text: string): boolean => PORT.test(text) && Number(text) >= 1 && Number(text) <= 65_535

function requireDifferent(pairs: readonly Pair[]): void {
  const seen = new Set<number>()
  for (const { hostPort } of pairs) {
    if (hostPort === undefined) continue
    if (seen.has(hostPort)) throw new BandSoxError('bad-request', `port ${hostPort} of this host is given twice`)
    seen.add(hostPort)
  }
}

function reportForward(context: Context, { hostAddress, hostPort, guestPort }: PortForward): void {
  const address = hostAddress.includes(':') ? `[${hostAddress}]` : hostAddress
  context.print(`Forwarding from ${address}:${hostPort} -> ${guestPort}`, { hostAddress, hostPort, guestPort })
}

function reportFailure(context: Context, guestPort: number, error: BandSoxError): void {
  const line = context.isJson
    ? JSON.stringify({ guestPort, code: error.code, detail: messageOf(error) })
    : printable(`a connection to port ${guestPort} failed: ${messageOf(error)}`)
  process.stderr.write(`${line}\n`)
}
