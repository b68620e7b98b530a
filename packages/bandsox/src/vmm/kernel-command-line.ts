/** What a guest's kernel and agent are told, whichever VMM starts them. The agent's words are those of guest/internal/agent/boot. */
import type { MachineSpec } from './vmm.js'

/** The UART's name in the guest, which is the console's. */
export const CONSOLE_UART = 'ttyS0'

/**
 * @param serial The agent's serial line: the name of a virtio-serial port, or {@link CONSOLE_UART}.
 * @param more Words of one VMM alone.
 */
export const kernelCommandLine = (spec: MachineSpec, serial: string, more: readonly string[]): string =>
  [
    `console=${CONSOLE_UART}`,
    'quiet',
    'loglevel=3',
    'panic=-1',
    'random.trust_cpu=on',
    ...more,
    'bandsox.root=/dev/vda',
    ...(spec.overlayAsData === true ? [] : ['bandsox.overlay=/dev/vdb']),
    `bandsox.port=${spec.port}`,
    `bandsox.serial=${serial}`,
    `bandsox.hostname=${spec.hostname}`,
  ].join(' ')
