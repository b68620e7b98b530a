/** A machine as a saved state sees it: without all that the next one has of its own. Pure. */
import type { MachineSpec } from './vmm.js'

/** Names, numbers, files and limits are the same in all of them; what is left is what a loaded machine must have too. */
export const shapeOf = ({ vcpu, memoryMib, isRootWritable, serialLine, vsock }: MachineSpec): MachineSpec => ({
  sandboxId: 'shape',
  directory: '/',
  vcpu,
  memoryMib,
  files: { kernel: 'kernel', initramfs: 'initramfs', root: 'root', overlay: 'overlay' },
  ...(isRootWritable !== undefined && { isRootWritable }),
  hostname: 'shape',
  vsock,
  ...(serialLine !== undefined && { serialLine }),
  cid: 3,
  port: 1,
  uid: 1,
  limits: { diskBytesPerSecond: null, diskOperationsPerSecond: null, cpus: null, processes: null },
})
