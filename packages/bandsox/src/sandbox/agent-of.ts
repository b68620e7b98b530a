/** The agent of a sandbox's machine, by the links that the machine has. */
import { Agent } from '../guest/agent.js'
import type { MachineRecord } from '../store/record.js'
import type { Host } from './host.js'

export function agentOf(
  host: Host,
  { id, machine, port }: { id: string; machine: MachineRecord | undefined; port: number | null },
): Agent {
  const links = machine === undefined || port === null ? [] : host.vmm.links(host.store.directoryOf(id), machine, port)
  return new Agent(links, { log: (text) => host.info(`${id}: ${text}`) })
}
