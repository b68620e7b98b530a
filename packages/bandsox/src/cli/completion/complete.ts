/** Says what may follow the words of a command line, by the definitions of the commands. No I/O: names are asked for. */
import { printableLine } from '@bandsox/sdk'
import type { Argument, Command, Option } from 'commander'
import { globalOptions, listedCommands, ownOptions, subcommandsOf, summaryOf } from '../command-tree.js'
import { argumentKind, optionKind, type ValueKind } from './value-kinds.js'

export interface Candidate {
  value: string
  description?: string
}

export interface Completion {
  candidates: Candidate[]
  /** Paths are left to the shell: it knows how to quote them. */
  paths?: 'files' | 'folders'
}

/** The names that there are, asked for where one of them may stand. */
export interface Names {
  sandboxes(): Promise<Name[]>
  images(): Promise<Name[]>
  snapshots(): Promise<Name[]>
}

export interface Name extends Candidate {
  /** A longer way to write it, offered only to who has begun to write it so. */
  inFull?: string
}

/** Where a command line stands after some words. */
interface Position {
  command: Command
  operands: string[]
  /** The option whose value comes next, or may come. */
  awaiting: Option | undefined
  /** What follows are no options of ours: after `--`, or behind the first operand of a command that passes words on. */
  hasOptionsBehind: boolean
  /** `help` was said: the name of a command comes next. */
  isHelp: boolean
  storage: string | undefined
}

const NOTHING: Completion = { candidates: [] }

/**
 * @param words What follows the program's name, without quotes; the last is the one to complete, and may be empty.
 * @param namesIn The names in a storage folder; undefined: the usual one.
 * @returns All that may stand there, not only what begins like the last word: shells have ideas of their own of what matches.
 */
export async function complete(
  program: Command,
  words: readonly string[],
  namesIn: (storage: string | undefined) => Names,
): Promise<Completion> {
  const current = words.at(-1) ?? ''
  const position = positionAfter(program, words.slice(0, -1))
  if (position === undefined) return NOTHING
  const { command, operands, awaiting, hasOptionsBehind, isHelp, storage } = position
  const names = namesIn(storage)
  const isDashed = current.startsWith('-')
  if (awaiting !== undefined && !(isDashed && mayEndBefore(awaiting)))
    return await optionValues(awaiting, { current, names })
  if (isDashed && !hasOptionsBehind) {
    const equals = current.indexOf('=')
    if (equals === -1) return { candidates: optionsAt(command).map(optionCandidate) }
    const option = optionIn(current, command)?.option
    const head = current.slice(0, equals + 1)
    const values =
      option === undefined ? NOTHING : await optionValues(option, { current: current.slice(head.length), names })
    return { ...values, candidates: values.candidates.map((each) => ({ ...each, value: head + each.value })) }
  }
  if (isHelp) return { candidates: operands.length === 0 ? subcommandsOf(command).flatMap(commandCandidates) : [] }
  if (command.commands.length > 0) return { candidates: listedCommands(command).flatMap(commandCandidates) }
  const argument = argumentAt(command, operands.length)
  if (argument === undefined) return NOTHING
  return await valuesOf(argumentKind(argument), argument.argChoices, { current, names, given: operands })
}

/** Only such values are printed: they go to a shell, and names are what others made of them. */
const PLAIN = /^[A-Za-z0-9._:/@+-]+$/
const PLAIN_LIST = /^[A-Za-z0-9._:/@+-]+(?:,? [A-Za-z0-9._:/@+-]+)*$/
const PLAIN_WITH_VALUE = /^--[a-z0-9-]+=[A-Za-z0-9._:/@+-]+$/

/** A line for each: value, tab, description. `<files>` and `<folders>`, which are no values, ask the shell for paths. */
export function completionText({ candidates, paths }: Completion): string {
  const lines = candidates
    .filter(({ value }) => PLAIN.test(value) || PLAIN_WITH_VALUE.test(value))
    .map(({ value, description = '' }) => (description === '' ? value : `${value}\t${printableLine(description)}`))
  if (paths !== undefined) lines.push(`<${paths}>`)
  return lines.map((line) => `${line}\n`).join('')
}

/** @returns undefined when they make no sense to us. */
function positionAfter(program: Command, words: readonly string[]): Position | undefined {
  const position: Position = {
    command: program,
    operands: [],
    awaiting: undefined,
    hasOptionsBehind: false,
    isHelp: false,
    storage: undefined,
  }
  for (const word of words) if (!advance(position, word)) return undefined
  return position
}

function advance(position: Position, word: string): boolean {
  const { awaiting, command } = position
  const isDashed = word.length > 1 && word.startsWith('-')
  if (awaiting !== undefined && !(isDashed && mayEndBefore(awaiting))) {
    take(position, awaiting, word)
    if (!awaiting.variadic) position.awaiting = undefined
    return true
  }
  position.awaiting = undefined
  if (isDashed && !position.hasOptionsBehind) {
    if (word === '--') {
      position.hasOptionsBehind = true
      return true
    }
    const found = optionIn(word, command)
    if (found === undefined) return false
    if (found.value !== undefined) take(position, found.option, found.value)
    else if (takesValue(found.option)) position.awaiting = found.option
    return true
  }
  if (command.commands.length > 0 && !position.isHelp) {
    const next = command.commands.find((each) => each.name() === word || each.aliases().includes(word))
    if (next !== undefined) position.command = next
    else if (word === 'help') position.isHelp = true
    else return false
    return true
  }
  position.operands.push(word)
  if (command.registeredArguments.some((argument) => argumentKind(argument) === 'guest'))
    position.hasOptionsBehind = true
  return true
}

function take(position: Position, option: Option, value: string): void {
  if (option.attributeName() === 'storage') position.storage = value
}

const takesValue = (option: Option): boolean => option.required || option.optional

/** Whether its value, or the rest of its values, may be left out. */
const mayEndBefore = (option: Option): boolean => option.optional || option.variadic

const optionsAt = (command: Command): Option[] => [...ownOptions(command), ...globalOptions(command)]

/** `--name`, `--name=value`, `-n`, `-nvalue`, or several switches in one word: the last one counts. */
function optionIn(word: string, command: Command): { option: Option; value: string | undefined } | undefined {
  const options = optionsAt(command)
  if (word.startsWith('--')) {
    const [flag = '', ...rest] = word.split('=')
    const option = options.find((each) => each.long === flag)
    return option === undefined ? undefined : { option, value: rest.length === 0 ? undefined : rest.join('=') }
  }
  let last: Option | undefined
  for (const [index, letter] of [...word.slice(1)].entries()) {
    last = options.find(({ short }) => short === `-${letter}`)
    if (last === undefined) return undefined
    if (takesValue(last)) return { option: last, value: word.slice(index + 2) || undefined }
  }
  return last === undefined ? undefined : { option: last, value: undefined }
}

/** The argument at this place; the last may take all that follow. */
function argumentAt(command: Command, index: number): Argument | undefined {
  const last = command.registeredArguments.at(-1)
  return command.registeredArguments[index] ?? (last?.variadic === true ? last : undefined)
}

interface Asked {
  current: string
  names: Names
  /** What was given before: `vm delete a b` names each once. */
  given?: readonly string[]
}

const optionValues = (option: Option, asked: Asked): Promise<Completion> =>
  takesValue(option) ? valuesOf(optionKind(option), option.argChoices, asked) : Promise.resolve(NOTHING)

async function valuesOf(
  kind: ValueKind | undefined,
  choices: readonly string[] | undefined,
  asked: Asked,
): Promise<Completion> {
  if (choices !== undefined) return { candidates: choices.map((value) => ({ value })) }
  switch (kind) {
    case 'sandbox':
      return { candidates: choosable(await asked.names.sandboxes(), asked) }
    case 'image':
      return { candidates: choosable(await asked.names.images(), asked) }
    case 'snapshot':
      return { candidates: choosable(await asked.names.snapshots(), asked) }
    case 'file':
      return { candidates: [], paths: 'files' }
    case 'folder':
      return { candidates: [], paths: 'folders' }
    case 'guest':
    case undefined:
      return NOTHING
  }
}

function choosable(names: readonly Name[], { current, given = [] }: Asked): Candidate[] {
  return names
    .map(({ value, inFull, description = '' }) => {
      const isBegunInFull = inFull?.startsWith(current) === true && !value.startsWith(current)
      // It repeats names of others.
      return { value: isBegunInFull ? inFull : value, description: PLAIN_LIST.test(description) ? description : '' }
    })
    .filter(({ value }) => !given.includes(value) && !value.startsWith('-')) // with a dash, it would be taken for an option
}

const commandCandidates = (command: Command): Candidate[] =>
  [command.name(), ...command.aliases()].map((value) => ({ value, description: summaryOf(command) }))

const optionCandidate = ({ long, short, description }: Option): Candidate => ({
  value: long ?? short ?? '',
  description,
})
