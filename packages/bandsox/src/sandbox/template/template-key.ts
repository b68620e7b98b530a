/** What tells one template from another: everything that could change what a machine that goes on from it would be. */
import { createHash } from 'node:crypto'
import { statSync } from 'node:fs'
import { bootDigests } from '../../boot/boot.js'
import { DISK_FORMAT } from '../../image/image-store.js'
import { FIRST_CID, FIRST_PORT } from '../../store/numbers.js'
import type { SandboxRecord } from '../../store/record.js'
import { TSC_KHZ } from '../../vmm/host-cpu.js'
import type { Host } from '../host.js'
import { machineSpec } from '../start-machine.js'
import { storageFolders } from '../storage-folders.js'

/** Of what a template holds beyond its machine: another one, and all of them are made anew. */
const FORMAT = 1

/**
 * @param record What is to be started. Only its shape and its image make a difference.
 * @returns A SHA-256 in hex.
 */
export async function templateKey(host: Host, record: Omit<SandboxRecord, 'operation'>): Promise<string> {
  const numbers = { cid: FIRST_CID, port: FIRST_PORT }
  const [boot, spec] = await Promise.all([
    bootDigests(storageFolders(host.store.root).boot),
    machineSpec(host, { operation: undefined, ...record }, numbers),
  ])
  const [fingerprint, program] = await Promise.all([host.vmm.fingerprint(spec), host.vmm.program()])
  return keyOf({
    ...{ fingerprint, program: programOf(program), image: record.image.digest },
    ...boot,
    shape: [record.vcpu, record.memoryMib, record.diskMib],
  })
}

export interface TemplateFacts {
  /** Of the VMM, its machine and devices, and the host. */
  fingerprint: Record<string, string>
  /** The VMM's file. */
  program: string[]
  /** A digest of each. */
  image: string
  kernel: string
  initramfs: string
  shape: number[]
}

/** The order in which facts are given makes no difference. Pure. */
export function keyOf({ fingerprint, program, image, kernel, initramfs, shape }: TemplateFacts): string {
  const parts = [FORMAT, DISK_FORMAT, sorted(fingerprint), program, image, kernel, initramfs, shape]
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex')
}

/** An upgrade puts another file in its place, also where it says the same version as before. */
export function programOf(file: string): string[] {
  const { dev, ino, size, mtimeNs } = statSync(file, { bigint: true }) // at once: see the seals of a snapshot's files
  return [dev, ino, size, mtimeNs].map(String)
}

/** Without the clock's speed, which each boot of a host measures a little differently: a start from the template compares it. */
const sorted = (facts: Record<string, string>): [string, string][] =>
  Object.entries(facts)
    .filter(([name]) => name !== TSC_KHZ)
    .sort(([one], [other]) => (one < other ? -1 : 1))
