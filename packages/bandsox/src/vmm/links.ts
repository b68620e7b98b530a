/** The ways to the agent of a machine: the same two sockets of its shim, whatever VMM is behind them. */
import path from 'node:path'
import type { Link } from '../link/link.js'
import { socketLink } from '../link/socket-link.js'
import type { MachineFacts } from './vmm.js'

/** The shim's, whatever line is behind it. */
export const SERIAL_SOCKET = 'serial.sock'
/** The shim's, whatever is behind it. */
export const VSOCK_SOCKET = 'vsock.sock'

/** The preferred one first. */
export const linksOf = (directory: string, { vsock, serial }: MachineFacts, port: number): readonly Link[] => [
  ...(vsock === null ? [] : [socketLink('vsock', path.join(directory, vsock.socket), port)]),
  ...(serial === undefined ? [] : [socketLink('serial', path.join(directory, serial.socket), port)]),
]
