/** What a state of a Firecracker's machine depends on. Pure. */
import { digestOf } from '../host-cpu.js'
import { shapeOf } from '../shape.js'
import type { MachineSpec } from '../vmm.js'
import { vmConfiguration } from './configuration.js'

/** @param cpu The host's, which the guest has seen. */
export const firecrackerFingerprint = (spec: MachineSpec, version: string, cpu: string): Record<string, string> => ({
  vmm: 'firecracker',
  version,
  cpu,
  vcpu: String(spec.vcpu),
  memoryMib: String(spec.memoryMib),
  devices: digestOf(JSON.stringify(vmConfiguration(shapeOf(spec)))),
})
