/** CIDs and ports of running sandboxes: which one is next, by the rules that users know. Works inside a transaction. */
import { BandSoxError } from '@bandsox/sdk'
import { z } from 'zod'
import type { Tables } from './database.js'

/** 0–2 are the hypervisor, local and the host (vsock(7)); above the last, a VM's own user would leave its range. */
export const FIRST_CID = 3
const LAST_CID = 65_535
/** Guest ports; each guest has its own, so that they need not differ, but users know them to. */
export const FIRST_PORT = 9_000
export const LAST_PORT = 9_999

const numberRow = z.object({ number: z.number().int() })

const held = (tables: Tables, column: 'cid' | 'port'): number[] =>
  tables
    .rows(`SELECT ${column} AS number FROM sandboxes WHERE ${column} IS NOT NULL ORDER BY ${column}`)
    .map((row) => numberRow.parse(row).number)

const next = (tables: Tables, name: 'cid' | 'port'): number =>
  numberRow.parse(tables.row('SELECT next AS number FROM allocators WHERE name = $name', { name })).number

const setNext = (tables: Tables, name: 'cid' | 'port', number: number): void =>
  void tables.change('UPDATE allocators SET next = $number WHERE name = $name', { name, number })

/** A row of `allocators` that is there after an import: CIDs below it may be those of the earlier project's VMs. */
const CID_FLOOR = 'cid-floor'

function cidFloor(tables: Tables): number {
  const row = tables.row('SELECT next AS number FROM allocators WHERE name = $name', { name: CID_FLOOR })
  return row === undefined ? FIRST_CID : numberRow.parse(row).number
}

/**
 * The lowest free CID: one that was released is the next one given. Those that the earlier project has given come last.
 *
 * @param above Numbers up to this one are known to be taken by others on this host.
 * @throws `host-resource` when all are held.
 */
export function nextCid(tables: Tables, above?: number): number {
  const taken = new Set(held(tables, 'cid'))
  const lowestFree = (first: number, last: number): number | undefined => {
    for (let cid = first; cid <= last; cid++) if (!taken.has(cid)) return cid
    return undefined
  }
  const floor = cidFloor(tables)
  const cid =
    above === undefined
      ? (lowestFree(floor, LAST_CID) ?? lowestFree(FIRST_CID, floor - 1))
      : lowestFree(above + 1, LAST_CID)
  if (cid === undefined) throw exhausted('CID', FIRST_CID, LAST_CID)
  setNext(tables, 'cid', Math.max(next(tables, 'cid'), cid + 1))
  return cid
}

/**
 * The next port in turn that is free: one that was released comes up again after all others.
 *
 * @throws `host-resource` when all are held.
 */
export function nextPort(tables: Tables): number {
  const taken = new Set(held(tables, 'port'))
  const count = LAST_PORT - FIRST_PORT + 1
  const start = next(tables, 'port')
  for (let step = 0; step < count; step++) {
    const port = FIRST_PORT + ((start - FIRST_PORT + step) % count)
    if (taken.has(port)) continue
    setNext(tables, 'port', port === LAST_PORT ? FIRST_PORT : port + 1)
    return port
  }
  throw exhausted('port', FIRST_PORT, LAST_PORT)
}

/** In the shape of the earlier project's two files. */
export interface AllocatorState {
  cids: { free_cids: number[]; next_cid: number }
  ports: { next_port: number; used_ports: number[] }
}

export function allocatorState(tables: Tables): AllocatorState {
  const heldCids = new Set(held(tables, 'cid'))
  const nextCidNumber = next(tables, 'cid')
  const free = []
  for (let cid = cidFloor(tables); cid < nextCidNumber; cid++) if (!heldCids.has(cid)) free.push(cid)
  return {
    cids: { free_cids: free, next_cid: nextCidNumber },
    ports: { next_port: next(tables, 'port'), used_ports: held(tables, 'port') },
  }
}

/**
 * Numbers that the earlier project has given are given again only after all others.
 *
 * @param cid The first one that it has not given, as is `port`; out of our bounds: nothing is changed.
 */
export function beginAfter(tables: Tables, { cid, port }: { cid: number; port: number }): void {
  if (cid > FIRST_CID && cid <= LAST_CID) {
    const floor = Math.max(cidFloor(tables), cid)
    tables.change('INSERT INTO allocators VALUES ($name, $floor) ON CONFLICT (name) DO UPDATE SET next = $floor', {
      name: CID_FLOOR,
      floor,
    })
    setNext(tables, 'cid', Math.max(next(tables, 'cid'), floor))
  }
  // Never back: a second import must not give again what has just been released.
  if (port > next(tables, 'port') && port <= LAST_PORT) setNext(tables, 'port', port)
}

/** Begins anew with the first numbers. @throws `wrong-state` while a sandbox holds any. */
export function resetNumbers(tables: Tables): void {
  const holders = tables.rows('SELECT id FROM sandboxes WHERE cid IS NOT NULL ORDER BY id').map(({ id }) => String(id))
  if (holders.length > 0)
    throw new BandSoxError(
      'wrong-state',
      `cannot reset CIDs and ports: ${holders.length === 1 ? 'a sandbox holds' : `${holders.length} sandboxes hold`} some: ${holders.slice(0, 10).join(', ')}${holders.length > 10 ? ', …' : ''}`,
      { hint: 'stop them first: bandsox vm list, bandsox vm stop' },
    )
  setNext(tables, 'cid', FIRST_CID)
  setNext(tables, 'port', FIRST_PORT)
  tables.change('DELETE FROM allocators WHERE name = $name', { name: CID_FLOOR })
}

const exhausted = (name: string, first: number, last: number) =>
  new BandSoxError('host-resource', `No available ${name}: all of ${first}–${last} are held by running sandboxes`, {
    hint: 'stop a sandbox: bandsox vm list',
  })
