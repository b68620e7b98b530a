/** What may stand where the commands' definitions say `<vm>` or `--storage <folder>`: the name says it, in all commands alike. */
import type { Argument, Option } from 'commander'
import { valueNameOf } from '../command-tree.js'

export type ValueKind =
  | 'sandbox'
  | 'image'
  | 'snapshot'
  /** A path on this host. */
  | 'file'
  | 'folder'
  /** A command for the guest: its words, and its options, are none of ours. */
  | 'guest'

const common: Record<string, ValueKind> = {
  vm: 'sandbox',
  sandbox: 'sandbox',
  image: 'image',
  snapshot: 'snapshot',
  local: 'file',
  file: 'file',
  folder: 'folder',
}

/** A path as an argument is one of this host; those in the guest are called `remote`. */
const ofArguments: Record<string, ValueKind> = { ...common, reference: 'image', path: 'file', files: 'file' }

/** A path of an option may be one in the guest, as that of `--workdir <path>` is. */
const ofOptions: Record<string, ValueKind> = common

export function argumentKind(argument: Argument): ValueKind | undefined {
  if (argument.name() === 'command' && argument.variadic) return 'guest'
  return ofArguments[argument.name()]
}

export const optionKind = (option: Option): ValueKind | undefined => ofOptions[valueNameOf(option) ?? '']
