/** The links of a running sandbox, each tried, and looked at from both sides: what `doctor VM` shows. */
import { type LinkReport, type LinkState, messageOf, printableLine } from '@bandsox/sdk'
import { GuestConnection } from '../guest/connection.js'
import { askLinks, type GuestLinks } from '../guest/links.js'
import type { Link } from '../link/link.js'
import { type LinkStatistics, linkStatistics } from '../process/shim.js'
import type { SandboxRecord } from '../store/record.js'
import { agentOf } from './agent-of.js'
import type { Host } from './host.js'

/** What vsock gets when it is tried for an operation, in all (guest/ladder.ts); the last link may take longer, on a UART. */
const TRY_MS = { vsock: 1_500, serial: 10_000 } as const

type Tried = Pick<LinkState, 'handshakeMs' | 'failure'>

/** @param record Of a sandbox that runs. */
export async function reportLinks(
  host: Host,
  record: SandboxRecord,
  signal: AbortSignal | undefined,
): Promise<LinkReport> {
  const directory = host.store.directoryOf(record.id)
  const { machine, port } = record
  const links = machine === undefined || port === null ? [] : host.vmm.links(directory, machine, port)
  const tried = new Map<Link['kind'], Tried>()
  for (const link of links) tried.set(link.kind, await tryLink(link, signal))
  const statistics = await unlessItFails(() => linkStatistics(directory, signal), host, signal)
  const guest = await unlessItFails(() => askGuest(host, record, signal), host, signal)
  const vsock = vsockOf(record, directory, tried.get('vsock'), statistics?.vsock ?? undefined, guest)
  const serial = serialOf(record, directory, tried.get('serial'), statistics?.serial ?? undefined)
  return { ...choice(vsock, serial, machine?.vsockReason), vsock, serial }
}

async function tryLink(link: Link, signal: AbortSignal | undefined): Promise<Tried> {
  const startedAt = performance.now()
  try {
    const connection = await GuestConnection.open(link, { signal, timeoutMs: TRY_MS[link.kind] })
    const handshakeMs = performance.now() - startedAt
    connection.close()
    return { handshakeMs, failure: null }
  } catch (error) {
    signal?.throwIfAborted()
    return { handshakeMs: null, failure: printableLine(messageOf(error)) }
  }
}

async function askGuest(host: Host, record: SandboxRecord, signal: AbortSignal | undefined): Promise<GuestLinks> {
  const agent = agentOf(host, record)
  try {
    return await askLinks(agent, signal)
  } finally {
    agent.close()
  }
}

/** A report is for when something does not work: a part that cannot be had is left out. */
async function unlessItFails<T>(
  work: () => Promise<T>,
  host: Host,
  signal: AbortSignal | undefined,
): Promise<T | undefined> {
  try {
    return await work()
  } catch (error) {
    signal?.throwIfAborted()
    host.debug(messageOf(error))
    return undefined
  }
}

function vsockOf(
  { machine, cid, port, vsock: wanted }: SandboxRecord,
  directory: string,
  tried: Tried | undefined,
  statistics: LinkStatistics['vsock'] | undefined,
  guest: GuestLinks | undefined,
): LinkReport['vsock'] {
  const device = machine?.vsock ?? null
  const { kernel, module, device: guestDevice, cid: guestCid, port: guestPort, reason } = guest?.vsock ?? {}
  return {
    ...(tried ?? { handshakeMs: null, failure: null }),
    socket: device === null ? null : `${directory}/${device.socket}`,
    traffic: trafficOf(statistics),
    wanted,
    backend: device?.backend ?? null,
    backendState: statistics?.state ?? null,
    cid,
    port,
    guestKernel: kernel ?? null,
    guestModule: module === undefined ? null : printableLine(module),
    guestDevice: guestDevice ?? null,
    guestCid: guestCid ?? null,
    guestPort: guestPort ?? null,
    guestReason: reason === undefined ? null : printableLine(reason),
  }
}

function serialOf(
  { machine }: SandboxRecord,
  directory: string,
  tried: Tried | undefined,
  statistics: LinkStatistics['serial'] | undefined,
): LinkReport['serial'] {
  const line = machine?.serial
  const {
    kind: _,
    open: _open,
    opened: _opened,
    toGuestBytes: _to,
    fromGuestBytes: _from,
    ...datalink
  } = statistics ?? {}
  return {
    ...(tried ?? { handshakeMs: null, failure: null }),
    socket: line === undefined ? null : `${directory}/${line.socket}`,
    traffic: trafficOf(statistics),
    line: line?.line ?? null,
    datalink: statistics === undefined ? null : (datalink as NonNullable<LinkReport['serial']['datalink']>),
  }
}

function trafficOf(statistics: LinkState['traffic'] | undefined): LinkState['traffic'] {
  if (statistics === undefined || statistics === null) return null
  const { open, opened, toGuestBytes, fromGuestBytes } = statistics
  return { open, opened, toGuestBytes, fromGuestBytes }
}

function choice(
  vsock: LinkReport['vsock'],
  serial: LinkReport['serial'],
  whyNoDevice: string | undefined,
): Pick<LinkReport, 'current' | 'reason'> {
  if (vsock.handshakeMs !== null) return { current: 'vsock', reason: 'it answers, and is first in order' }
  const why = whyNotVsock(vsock, whyNoDevice)
  if (serial.handshakeMs !== null) return { current: 'serial', reason: why }
  return {
    current: null,
    reason: `${why}; the serial line does not answer either: ${serial.failure ?? 'there is none'}`,
  }
}

function whyNotVsock(vsock: LinkReport['vsock'], whyNoDevice: string | undefined): string {
  if (vsock.socket === null) return `it has no vsock device: ${whyNoDevice ?? 'none was asked for'}`
  if (vsock.backendState === 'dead')
    return 'its vsock daemon has died, and a running machine takes no other: restart it to have vsock again'
  return `vsock does not answer: ${vsock.failure ?? 'it was not tried'}`
}
