/** What a state of a QEMU machine depends on. Pure. */
import { digestOf } from '../host-cpu.js'
import { shapeOf } from '../shape.js'
import type { MachineSpec } from '../vmm.js'
import { MACHINE_TYPE, qemuCommandLine } from './command-line.js'

export interface QemuFacts {
  version: string
  accelerator: 'kvm' | 'tcg'
  vsock: 'kernel' | 'daemon' | null
  /** The host's: the guest has it, or, under emulation, its TSC. */
  cpu: string
}

export function qemuFingerprint(
  spec: MachineSpec,
  { version, accelerator, vsock, cpu }: QemuFacts,
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
    cpu,
    vcpu: String(spec.vcpu),
    memoryMib: String(spec.memoryMib),
    devices: digestOf(argv.join('\0')),
  }
}
