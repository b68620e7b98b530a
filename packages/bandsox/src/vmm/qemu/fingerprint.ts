/** What a state of a QEMU machine depends on. Pure. */
import { digestOf, type HostProcessor, processorFacts } from '../host-cpu.js'
import { shapeOf } from '../shape.js'
import type { MachineSpec } from '../vmm.js'
import { MACHINE_TYPE, qemuCommandLine } from './command-line.js'

/** The host's processor: the guest has it, or, under emulation, its TSC. */
export interface QemuFacts extends HostProcessor {
  version: string
  accelerator: 'kvm' | 'tcg'
  vsock: 'kernel' | 'daemon' | null
}

export function qemuFingerprint(
  spec: MachineSpec,
  { version, accelerator, vsock, ...processor }: QemuFacts,
): Record<string, string> {
  const shape = shapeOf(spec)
  // The daemon's device is in no state, and may be plugged in afterwards.
  const choice = { program: 'qemu', accelerator, vsock: vsock === 'daemon' ? null : vsock }
  const { argv } = qemuCommandLine(shape, { ...choice, serialLine: shape.serialLine ?? 'port' })
  return {
    vmm: 'qemu',
    version,
    machine: MACHINE_TYPE,
    accelerator,
    ...processorFacts(processor),
    vcpu: String(spec.vcpu),
    memoryMib: String(spec.memoryMib),
    devices: digestOf(argv.join('\0')),
  }
}
