/** What a machine is made as: the options that `create`, `run`, `template make` and `pool set` share. */
import type { CreateOptions, VsockMode } from '@bandsox/sdk'
import { type Command, Option } from 'commander'
import { integerOption } from './option-parsers.js'

export interface ShapeOptions {
  vcpu?: number
  mem?: number
  diskSize?: number
  vsock?: VsockMode
}

export const withShapeOptions = (command: Command): Command =>
  command
    .option('--vcpu <count>', 'virtual CPUs (default: 1)', integerOption)
    .option('--mem <MiB>', 'guest memory (default: 256)', integerOption)
    .option('--disk-size <MiB>', 'writable disk, takes what is written (default: 4096)', integerOption)
    .addOption(new Option('--vsock <mode>', 'the vsock device (default: auto)').choices(['auto', 'on', 'off']))

export const shapeFrom = ({
  vcpu,
  mem,
  diskSize,
  vsock,
}: ShapeOptions): Pick<CreateOptions, 'vcpu' | 'memoryMib' | 'diskMib' | 'vsock'> => ({
  ...(vcpu !== undefined && { vcpu }),
  ...(mem !== undefined && { memoryMib: mem }),
  ...(diskSize !== undefined && { diskMib: diskSize }),
  ...(vsock !== undefined && { vsock }),
})
