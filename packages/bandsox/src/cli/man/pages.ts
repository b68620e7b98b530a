/** The manual: a page for each command, written from its definition. Pure. */
import type { Argument, Command, Option } from 'commander'
import {
  globalOptions,
  ownOptions,
  pathOf,
  rootOf,
  subcommandsOf,
  summaryOf,
  withDescendants,
} from '../command-tree.js'
import { argumentKind } from '../completion/value-kinds.js'
import { type Described, environmentVariables, files } from './environment.js'
import { exitStatuses } from './exit-statuses.js'
import { bold, escaped, heading, italic, paragraphs, tagged } from './roff.js'

export interface ManPage {
  /** `bandsox-vm-list.1` */
  file: string
  /** roff, with the macros of man(7). */
  text: string
}

/** Section of the manual: commands of users. */
const SECTION = '1'

export const manPages = (program: Command): ManPage[] =>
  withDescendants(program).map((command) => ({ file: `${pageName(command)}.${SECTION}`, text: pageOf(command) }))

const pageName = (command: Command): string => pathOf(command).join('-')

/** `bandsox-vm-list(1)` */
const reference = (command: Command): string => `${bold(pageName(command))}(${SECTION})`

function pageOf(command: Command): string {
  const program = rootOf(command)
  const title = [
    pageName(command).toUpperCase(),
    SECTION,
    '',
    `${program.name()} ${program.version()}`,
    'BandSox Manual',
  ]
  const sections: [string, string[]][] = [
    ['NAME', [`${escaped(pageName(command))} \\- ${escaped(nameSentence(command))}`]],
    ['SYNOPSIS', [synopsis(command)]],
    ['DESCRIPTION', [paragraphs(sentence(command.description())), ...aliasParagraph(command)]],
    ['ARGUMENTS', command.registeredArguments.map(argumentParagraph)],
    ['COMMANDS', subcommandsOf(command).map((each) => tagged(reference(each), escaped(sentence(summaryOf(each)))))],
    ['OPTIONS', ownOptions(command).map(optionParagraph)],
    ['GLOBAL OPTIONS', globalOptions(command).map(optionParagraph)],
    ['EXIT STATUS', exitStatusParagraphs(command)],
    ['ENVIRONMENT', environmentVariables.map(describedParagraph(bold))],
    ['FILES', files.map(describedParagraph(italic))],
    ['SEE ALSO', [relatives(command).map(reference).join(',\n')]],
  ]
  return [
    `.\\" Generated from the definitions of the commands: bandsox man`,
    `.TH ${title.map((part) => `"${escaped(part)}"`).join(' ')}`,
    '.nh', // no hyphens but those of the text
    '.ad l',
    ...sections.filter(([, texts]) => texts.length > 0).flatMap(([name, texts]) => [heading(name), ...texts]),
    '',
  ].join('\n')
}

/** `list all of them` says nothing without what they are of. */
function nameSentence(command: Command): string {
  const { parent } = command
  const isNested = parent !== null && parent.parent !== null
  return `${isNested ? `${summaryOf(parent)}: ` : ''}${summaryOf(command)}`.replace(/\.$/, '')
}

function synopsis(command: Command): string {
  const placeholder = subcommandsOf(command).length > 0 ? [`${italic('command')} ...`] : []
  const words = [
    bold(pathOf(command).join(' ')),
    `[${italic('options')}]`,
    ...command.registeredArguments.map(argumentTerm),
  ]
  return [...words, ...placeholder].join(' ')
}

function argumentTerm(argument: Argument): string {
  const name = `${italic(argument.name())}${argument.variadic ? ' ...' : ''}`
  return argument.required ? name : `[${name}]`
}

const argumentParagraph = (argument: Argument): string => {
  const described = [argument.description, ...choicesOf(argument.argChoices), ...defaultOf(argument.defaultValue)]
  return tagged(argumentTerm(argument), escaped(sentence(joined(described))))
}

function optionParagraph(option: Option): string {
  const described = [option.description, ...choicesOf(option.argChoices), ...defaultOf(option.defaultValue)]
  const needed = option.mandatory ? ['required'] : []
  return tagged(optionTerm(option.flags), escaped(sentence(joined([...described, ...needed]))))
}

/** `-e, --env <NAME=value>`: what is typed as it is in bold, what stands for something in italics. */
function optionTerm(flags: string): string {
  return flags
    .split(/(<[^>]*>|\[[^\]]*\]|[ ,|]+)/)
    .map((part) => {
      if (part.startsWith('<')) return italic(part.slice(1, -1))
      if (part.startsWith('[')) return `[${italic(part.slice(1, -1))}]`
      return part.startsWith('-') ? bold(part) : escaped(part)
    })
    .join('')
}

const choicesOf = (choices: readonly string[] | undefined): string[] =>
  choices === undefined ? [] : [`one of ${choices.join(', ')}`]

const defaultOf = (value: unknown): string[] =>
  typeof value === 'string' || typeof value === 'number' ? [`default: ${value}`] : []

const joined = (parts: readonly string[]): string => parts.filter((part) => part !== '').join('; ')

/** Definitions are phrases, as help shows them. */
function sentence(text: string): string {
  const begun = text.charAt(0).toUpperCase() + text.slice(1)
  // A name is spelled as it is, and a text that ends in an example has no full stop behind it.
  const isPhrase = /^[a-z]+(?:[ ,:;]|$)/.test(text)
  const last = text.split('\n').at(-1) ?? ''
  return `${isPhrase ? begun : text}${/[.:]$/.test(text) || last.startsWith('  ') || text === '' ? '' : '.'}`
}

function aliasParagraph(command: Command): string[] {
  const aliases = command.aliases()
  if (aliases.length === 0) return []
  const parent = pathOf(command).slice(0, -1).join(' ')
  return [`.PP\nThe same: ${aliases.map((alias) => bold(`${parent} ${alias}`)).join(', ')}.`]
}

function exitStatusParagraphs(command: Command): string[] {
  const isOfGuest = command.registeredArguments.some((argument) => argumentKind(argument) === 'guest')
  const ofGuest = isOfGuest
    ? [
        paragraphs(
          'The status of the command in the guest, or 128 plus the number of the signal that ended it. Where there is none:',
        ),
      ]
    : []
  const rows = exitStatuses().map(({ status, meaning, codes }) => {
    const listed = codes.length === 0 ? '' : ` (${codes.join(', ')})`
    return tagged(bold(String(status)), escaped(`${sentence(meaning).replace(/\.$/, '')}${listed}.`))
  })
  return [...ofGuest, ...rows]
}

const describedParagraph =
  (style: (text: string) => string) =>
  ({ name, meaning }: Described): string =>
    tagged(name.split(', ').map(style).join(', '), escaped(sentence(meaning)))

/** Who is above, beside and below. */
function relatives(command: Command): Command[] {
  const { parent } = command
  const above = parent === null ? [] : [...new Set([rootOf(command), parent])]
  const beside = parent === null ? [] : subcommandsOf(parent).filter((each) => each !== command)
  const isTopLevel = parent !== null && parent.parent === null
  return [...above, ...subcommandsOf(command), ...(isTopLevel ? [] : beside)]
}
