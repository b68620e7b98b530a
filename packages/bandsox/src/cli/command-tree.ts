/** Reads the definitions of the commands, for what is generated from them: completion and manual. */
import type { Command, Option } from 'commander'

export function rootOf(command: Command): Command {
  let root = command
  while (root.parent !== null) root = root.parent
  return root
}

/** From the program's name down: `['bandsox', 'vm', 'list']`. */
export const pathOf = (command: Command): string[] =>
  command.parent === null ? [command.name()] : [...pathOf(command.parent), command.name()]

/** What its help lists: also commander's own `help`, not what is hidden. */
export const listedCommands = (command: Command): Command[] => command.createHelp().visibleCommands(command)

/** Those that were defined here. */
export const subcommandsOf = (command: Command): Command[] =>
  listedCommands(command).filter((each) => command.commands.includes(each))

/** Itself, and all below it. */
export const withDescendants = (command: Command): Command[] => [
  command,
  ...subcommandsOf(command).flatMap(withDescendants),
]

/** With commander's own `--help`. */
export const ownOptions = (command: Command): Option[] => command.createHelp().visibleOptions(command)

/** The program's options that this command understands as well: it has copies of them, which its own help does not repeat. */
export const globalOptions = (command: Command): Option[] =>
  rootOf(command).options.filter(({ long }) => command.options.some((copy) => copy.hidden && copy.long === long))

/** One line. */
export const summaryOf = (command: Command): string => command.summary() || command.description()

/** `value` of `--option <value>`; undefined for a switch. */
export const valueNameOf = ({ flags }: Option): string | undefined => /[<[]([^>\].]+)/.exec(flags)?.[1]
