/** A way to the guest: whatever is behind it, it yields byte streams to the agent. */
import type { Socket } from 'node:net'
import type { LinkKind } from '@bandsox/sdk'

export interface Link {
  readonly kind: LinkKind
  /**
   * Opens a byte stream to the agent. Every link of ours is a Unix socket on the host's side. The host connects, the guest listens.
   *
   * @throws `link-refused` when nobody listens behind it (yet), or the link itself is gone; `signal.reason` when aborted.
   */
  open(signal?: AbortSignal): Promise<Socket>
}
