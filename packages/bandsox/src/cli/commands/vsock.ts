/** `vsock list` and `vsock reset`: CIDs and ports, and who has them. */
import type { SandboxInfo } from '@bandsox/sdk'
import type { Command } from 'commander'
import { contextOf } from '../context.js'
import { table } from '../text.js'

export function addVsock(program: Command): void {
  const vsock = program.command('vsock').description('CIDs and ports of the sandboxes')
  vsock
    .command('list')
    .alias('ls')
    .description('list them with their owners; with --json also what the allocators give next')
    .action(async (_options: unknown, command: Command) => {
      const context = contextOf(command)
      const bandsox = await context.open()
      const owners = (await bandsox.list()).flatMap((info) => ownerOf(info) ?? [])
      const { cids, ports } = await bandsox.numbers()
      const rows = owners.map(({ cid, port, id, name, state }) => [String(cid), String(port), id, name ?? '-', state])
      const head = table(['CID', 'PORT', 'VM', 'NAME', 'STATUS'], rows)
      const next = `next CID: ${cids.free_cids[0] ?? cids.next_cid}; next port: ${ports.next_port}`
      context.print(`${owners.length === 0 ? 'No CIDs or ports are held.' : head}\n${next}`, {
        cid_allocator: cids,
        port_allocator: ports,
        owners,
      })
    })
  vsock
    .command('reset')
    .description('let CIDs and ports begin anew; refused while any sandbox runs')
    .action(async (_options: unknown, command: Command) => {
      const context = contextOf(command)
      const bandsox = await context.open()
      await bandsox.resetNumbers()
      const { cids, ports } = await bandsox.numbers()
      context.print(`reset: next CID ${cids.next_cid}, next port ${ports.next_port}`, {
        cid_allocator: cids,
        port_allocator: ports,
      })
    })
}

function ownerOf({ id, name, state, vsock }: SandboxInfo) {
  return vsock === null ? undefined : { cid: vsock.cid, port: vsock.port, id, name, state: state.kind }
}
