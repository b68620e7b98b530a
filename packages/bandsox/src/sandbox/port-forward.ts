/** A port of this host whose connections are passed on into a guest. */
import { once, setMaxListeners } from 'node:events'
import { createServer, isIP, type Server, type Socket } from 'node:net'
import { BandSoxError, type ForwardOptions, isSystemError, messageOf, type PortForward } from '@bandsox/sdk'
import type { FindAgent } from '../guest/agent.js'
import { forwardConnection, resetSocket } from '../guest/forward.js'

/** Open at once; one more is reset. Each costs descriptors here and memory in the guest. */
const MAX_CONNECTIONS = 1_000
const DEFAULT_ADDRESS = '127.0.0.1'
/** PROTOCOL.md section 2: of `connect`. */
const MAX_HOST_BYTES = 255

/**
 * Listens, and forwards until it is closed.
 *
 * @param findAgent Asked for each connection: the guest may have been restarted, or be paused, since the last one.
 * @throws `bad-request`, `host-resource`, `permission-denied`, `signal.reason`.
 */
export async function forwardPort(findAgent: FindAgent, options: ForwardOptions): Promise<PortForward> {
  requireGood(options)
  options.signal?.throwIfAborted()
  const forward = new LocalPortForward(findAgent, options)
  await forward.listen()
  return forward
}

class LocalPortForward implements PortForward {
  readonly guestPort: number
  readonly hostAddress: string
  hostPort: number
  readonly connections = { open: 0, opened: 0, failed: 0 }
  readonly #findAgent: FindAgent
  readonly #options: ForwardOptions
  readonly #server: Server
  readonly #closing = new AbortController()
  readonly #running = new Set<Promise<void>>()
  #closed: Promise<void> | undefined
  readonly #onAbort = () => void this.close()

  constructor(findAgent: FindAgent, options: ForwardOptions) {
    this.#findAgent = findAgent
    this.#options = options
    this.guestPort = options.guestPort
    this.hostAddress = options.hostAddress ?? DEFAULT_ADDRESS
    this.hostPort = options.hostPort ?? 0
    setMaxListeners(0, this.#closing.signal) // one for each connection, which are bounded
    // Paused until the guest's side is there: what the client says first waits in the kernel, not in our memory.
    this.#server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (socket) =>
      this.#accept(socket),
    )
  }

  async listen(): Promise<void> {
    const { signal } = this.#options
    try {
      this.#server.listen({ host: this.hostAddress, port: this.hostPort })
      await once(this.#server, 'listening')
    } catch (error) {
      throw listenError(error, this.hostAddress, this.hostPort)
    }
    // Of a connection that could not be accepted, such as for want of descriptors: it was the client's, who sees it reset.
    this.#server.on('error', (error) => this.#failed(error))
    const address = this.#server.address()
    if (typeof address === 'object' && address !== null) this.hostPort = address.port
    signal?.addEventListener('abort', this.#onAbort, { once: true })
    if (signal?.aborted) {
      await this.close()
      signal.throwIfAborted()
    }
  }

  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    this.#options.signal?.removeEventListener('abort', this.#onAbort)
    const closed = once(this.#server, 'close')
    this.#server.close()
    this.#closing.abort(new BandSoxError('cancelled', `port ${this.hostPort} is not forwarded any more`))
    await Promise.all([...this.#running, closed])
  }

  #accept(socket: Socket): void {
    socket.on('error', () => undefined) // its `close` follows, and says enough
    if (this.connections.open >= MAX_CONNECTIONS) {
      resetSocket(socket)
      this.#failed(new BandSoxError('host-resource', `${MAX_CONNECTIONS} connections are open already`))
      return
    }
    this.connections.open++
    this.connections.opened++
    const running = this.#forward(socket).finally(() => {
      this.connections.open--
      this.#running.delete(running)
    })
    this.#running.add(running)
  }

  /** Never rejects. Resolves when the client's connection is closed. */
  async #forward(socket: Socket): Promise<void> {
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()))
    try {
      const agent = await this.#findAgent(this.#closing.signal)
      await forwardConnection(
        agent,
        socket,
        { port: this.guestPort, host: this.#options.guestHost },
        this.#closing.signal,
      )
    } catch (error) {
      resetSocket(socket)
      // A client that goes when it has what it wanted is no failure, nor is our own end.
      if (!(error instanceof BandSoxError && error.code === 'cancelled')) this.#failed(error)
    }
    // The last bytes may be on their way still; a client that does not take them goes with our end.
    const destroy = () => resetSocket(socket)
    this.#closing.signal.addEventListener('abort', destroy, { once: true })
    if (this.#closing.signal.aborted) destroy()
    await closed
    this.#closing.signal.removeEventListener('abort', destroy)
  }

  #failed(error: unknown): void {
    this.connections.failed++
    this.#options.onFailure?.(
      error instanceof BandSoxError ? error : new BandSoxError('host-resource', messageOf(error), { cause: error }),
    )
  }
}

function requireGood({ guestPort, guestHost, hostPort = 0, hostAddress = DEFAULT_ADDRESS }: ForwardOptions): void {
  const isPort = (port: number, least: number) => Number.isInteger(port) && port >= least && port <= 65_535
  if (!isPort(guestPort, 1))
    throw new BandSoxError('bad-request', `${guestPort} is not a port of the guest: 1 to 65535`)
  if (!isPort(hostPort, 0)) throw new BandSoxError('bad-request', `${hostPort} is not a port of this host: 0 to 65535`)
  if (isIP(hostAddress) === 0 && hostAddress !== 'localhost')
    throw new BandSoxError('bad-request', `${JSON.stringify(hostAddress)} is not an IP address of this host`)
  if (guestHost === undefined) return
  const size = Buffer.byteLength(guestHost)
  if (size === 0 || size > MAX_HOST_BYTES || guestHost.includes('\0') || !guestHost.isWellFormed())
    throw new BandSoxError('bad-request', `${JSON.stringify(guestHost.slice(0, 100))} is not a host's name or address`)
}

function listenError(error: unknown, address: string, port: number): BandSoxError {
  const attempt = `cannot listen on ${address.includes(':') ? `[${address}]` : address}:${port}`
  if (isSystemError(error, 'EADDRINUSE'))
    return new BandSoxError('host-resource', `${attempt}: the port is in use`, {
      cause: error,
      hint: 'choose another one, or let BandSox choose: :PORT',
    })
  if (isSystemError(error, 'EACCES'))
    return new BandSoxError('permission-denied', `${attempt}: ports below 1024 are not for everybody`, { cause: error })
  if (isSystemError(error, 'EADDRNOTAVAIL'))
    return new BandSoxError('bad-request', `${attempt}: this host has no such address`, { cause: error })
  return new BandSoxError('host-resource', `${attempt}: ${messageOf(error)}`, { cause: error })
}
