/** What tells one template from another: everything that could change what a machine that goes on from it would be. */
import { createHash } from 'node:crypto'
import { DISK_FORMAT } from '../../image/image-store.js'
import { FIRST_CID, FIRST_PORT } from '../../store/numbers.js'
import type { SandboxRecord } from '../../store/record.js'
import type { Host } from '../host.js'
import { loadBoot } from '../prepare.js'
import { machineSpec } from '../start-machine.js'

/** Of what a template holds beyond its machine: another one, and all of them are made anew. */
const FORMAT = 1

/**
 * @param record What is to be started. Only its shape and its image make a difference.
 * @returns A SHA-256 in hex.
 */
export async function templateKey(host: Host, record: Omit<SandboxRecord, 'operation'>): Promise<string> {
  const numbers = { cid: FIRST_CID, port: FIRST_PORT }
  const [boot, spec] = await Promise.all([
    loadBoot(host.store.root),
    machineSpec(host, { operation: undefined, ...record }, numbers),
  ])
  const parts = {
    format: FORMAT,
    machine: sorted(await host.vmm.fingerprint(spec)),
    kernel: boot.kernel.vmlinux.sha256,
    initramfs: boot.initramfs.sha256,
    image: record.image.digest,
    disk: DISK_FORMAT,
    shape: [record.vcpu, record.memoryMib, record.diskMib],
  }
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex')
}

const sorted = (facts: Record<string, string>): [string, string][] =>
  Object.entries(facts).sort(([one], [other]) => (one < other ? -1 : 1))
