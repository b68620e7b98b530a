/** A sandbox whose links and operations can be looked at, and which is otherwise what the library gives. */
import type { Socket } from 'node:net'
import type { LinkKind } from '@bandsox/sdk'
import type { Sandbox } from 'bandsox'
import type { Resumable, UseOptions } from '../../packages/bandsox/src/guest/agent.js'
import type { Link } from '../../packages/bandsox/src/link/link.js'
import { Agent, createSandbox, LocalSandbox, type openHost } from '../internals.js'

export type Host = Awaited<ReturnType<typeof openHost>>

export class WatchedAgent extends Agent {
  /** Every connection that was opened, in order; `at` by `performance.now()`. */
  readonly opened: { kind: LinkKind; at: number; socket: Socket }[]
  /** Bytes of the present transfer that have arrived, or that the guest has confirmed. */
  progress: () => number = () => 0

  constructor(links: readonly Link[]) {
    const opened: WatchedAgent['opened'] = []
    super(
      links.map(({ kind, open }) => ({
        kind,
        async open(signal) {
          const socket = await open(signal)
          opened.push({ kind, at: performance.now(), socket })
          return socket
        },
      })),
    )
    this.opened = opened
  }

  override async useUntilDone<T>(operation: Resumable<T>, options: UseOptions = {}): Promise<T> {
    this.progress = () => operation.progress()
    return await super.useUntilDone(operation, options)
  }
}

/** @param only Leaves all other links of the sandbox out. */
export async function watchedSandbox(
  host: Host,
  { memoryMib = 256, only }: { memoryMib?: number; only?: LinkKind } = {},
): Promise<
  {
    sandbox: Sandbox
    agentOver(only?: LinkKind): WatchedAgent
    agent: WatchedAgent
    directory: string
  } & AsyncDisposable
> {
  const { record, agent: usual } = await createSandbox(host, 'bandsox/base', { vsock: 'on', memoryMib })
  usual.close()
  const { machine, port } = record
  if (machine === undefined || port === null) throw new Error(`${record.id} was made without a machine`)
  const directory = host.store.directoryOf(record.id)
  const agentOver = (kind?: LinkKind) =>
    new WatchedAgent(
      host.vmm.links(directory, machine, port).filter((link) => kind === undefined || link.kind === kind),
    )
  const agent = agentOver(only)
  const sandbox = new LocalSandbox(host, record.id, { agent, record })
  return { sandbox, agent, agentOver, directory, [Symbol.asyncDispose]: () => sandbox[Symbol.asyncDispose]() }
}
