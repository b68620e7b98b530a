/** What a state of a Firecracker's machine depends on. Pure. */
import { digestOf, type HostProcessor, processorFacts } from '../host-cpu.js'
import { shapeOf } from '../shape.js'
import type { MachineSpec } from '../vmm.js'
import { vmConfiguration } from './configuration.js'

export interface FirecrackerFacts extends HostProcessor {
  version: string
}

export const firecrackerFingerprint = (
  spec: MachineSpec,
  { version, ...processor }: FirecrackerFacts,
): Record<string, string> => ({
  vmm: 'firecracker',
  version,
  ...processorFacts(processor),
  vcpu: String(spec.vcpu),
  memoryMib: String(spec.memoryMib),
  devices: digestOf(JSON.stringify(vmConfiguration(shapeOf(spec)))),
})
