import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { promisify } from 'node:util'
import { errorTable } from '@bandsox/sdk'
import { Command } from 'commander'
import { readConfig } from '../../config.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { globalOptions, ownOptions, pathOf, withDescendants } from '../command-tree.js'
import { buildProgram } from '../program.js'
import { environmentVariables, files } from './environment.js'
import { manPages } from './pages.js'
import { escaped } from './roff.js'

const hasGroff = spawnSync('groff', ['--version']).status === 0
const skip = hasGroff ? false : 'groff is not installed: apt-get install groff-base'

const program = buildProgram(false)
const pages = new Map(manPages(program).map(({ file, text }) => [file, text]))

function pageOf(command: Command): string {
  const page = pages.get(`${pathOf(command).join('-')}.1`)
  assert.ok(page !== undefined, command.name())
  return page
}

/** Lines of one section. */
function section(page: string, name: string): string {
  const [, text] = page.split(`.SH "${name}"\n`)
  assert.ok(text !== undefined, name)
  return text.split('\n.SH ')[0] ?? ''
}

/** As a terminal without bold shows it. */
async function rendered(page: string): Promise<string> {
  const groff = promisify(execFile)('groff', ['-man', '-ww', '-Tutf8', '-P-cbou', '-rLL=300n'])
  groff.child.stdin?.end(page)
  const { stdout, stderr } = await groff
  assert.equal(stderr, '')
  return stdout
}

describe('the manual', () => {
  it('has a page for every command, and none for a hidden one', () => {
    const commands = withDescendants(program)
    assert.ok(commands.length > 20)
    assert.equal(pages.size, commands.length)
    for (const command of commands) pageOf(command)
    assert.ok(![...pages.keys()].some((file) => file.includes('__')), [...pages.keys()].join(' '))
  })

  it('describes every option and argument of every command', () => {
    for (const command of withDescendants(program)) {
      const page = pageOf(command)
      const parts: [string, readonly { flags: string; description: string }[]][] = [
        ['OPTIONS', ownOptions(command)],
        ['GLOBAL OPTIONS', globalOptions(command)],
      ]
      for (const [name, options] of parts.filter(([, each]) => each.length > 0)) {
        for (const { flags, description } of options) {
          for (const flag of flags.split(/[ ,]+/).filter((part) => part.startsWith('-')))
            assert.ok(section(page, name).includes(`\\fB${escaped(flag)}\\fR`), `${command.name()} ${flag}`)
          assert.ok(
            description !== '' && section(page, name).includes(escaped(description.slice(1))),
            `${command.name()} ${flags}`,
          )
        }
      }
      for (const argument of command.registeredArguments) {
        assert.ok(section(page, 'SYNOPSIS').includes(`\\fI${escaped(argument.name())}\\fR`), command.name())
        assert.ok(argument.description !== '', `${command.name()} ${argument.name()} has no description`)
        assert.ok(section(page, 'ARGUMENTS').includes(escaped(argument.description.slice(1))), command.name())
      }
      assert.ok(command.description() !== '', `${command.name()} has no description`)
      assert.match(section(page, 'NAME'), /^bandsox[a-z\\-]* \\- \S+/)
    }
    assert.match(section(pageOf(program), 'OPTIONS'), /\\fB\\-\\-storage\\fR \\fIfolder\\fR/)
    assert.match(pages.get('bandsox-vm-list.1') ?? '', /\\fBbandsox vm ls\\fR/)
    assert.match(pages.get('bandsox-create.1') ?? '', /one of auto, on, off/)
  })

  it('names every error with its exit status', () => {
    const text = section(pageOf(program), 'EXIT STATUS')
    for (const [code, { exit }] of Object.entries(errorTable)) {
      const [, row] = text.split(`\\fB${exit}\\fR\n`)
      assert.match(row?.split('\n')[0] ?? '', new RegExp(`[ (]${escaped(code).replaceAll('\\', '\\\\')}[,)]`), code)
    }
  })

  it('names every variable of the environment that is read, and the files that are', () => {
    const asked = new Set<string>()
    const spy = new Proxy<NodeJS.ProcessEnv>({}, { get: (_, name) => void asked.add(String(name)) })
    const config = readConfig(spy)
    assert.ok(asked.size > 5)
    const described = environmentVariables.flatMap(({ name }) => name.split(', '))
    assert.deepEqual([...asked].filter((name) => name !== 'toJSON').sort(), described.sort())
    const home = process.env['HOME'] ?? ''
    for (const file of [config.configFile, ...config.authFiles])
      assert.ok(
        files.some(({ name }) => name.replace('~', home) === file),
        file,
      )
    const [forRoot, forOthers] = files
    const usual = process.getuid?.() === 0 ? forRoot : forOthers
    assert.equal(usual?.name.replace('~', home), config.storage)
  })

  it('names only pages that there are', () => {
    for (const [file, text] of pages) {
      const named = [...section(text, 'SEE ALSO').matchAll(/\\fB(\S+)\\fR\(1\)/g)].map(([, name = '']) => name)
      assert.ok(named.length > 0, file)
      for (const name of named) assert.ok(pages.has(`${name.replaceAll('\\-', '-')}.1`), `${file}: ${name}`)
    }
  })

  it('is read by groff without a warning', { skip }, async (t) => {
    const folder = await temporaryFolder(t)
    for (const [file, text] of pages) await writeFile(path.join(folder, file), text)
    const paths = [...pages.keys()].map((file) => path.join(folder, file))
    const { stderr } = await promisify(execFile)('groff', ['-man', '-ww', '-b', '-z', ...paths])
    assert.equal(stderr, '')
  })

  it('shows text as it was written, whatever is in it', { skip }, async () => {
    const nasty = [
      '.TH a leading dot',
      "'so a leading quote",
      'a back\\slash, \\fBno bold\\fR, \\n(.x and a last \\',
      'two  --long-options and `this` "that" ^~$HOME/x-y_z',
      'größer … 猫',
    ]
    const own = new Command('own')
      .version('1')
      .description(nasty.join('\n\n'))
      .argument('<file-name...>', '.a dot')
      .option('-x, --ex-it <to-where>', "'a quote")
    const text = await rendered(manPages(own)[0]?.text ?? '')
    for (const line of [...nasty, '.a dot.', "'a quote."]) {
      const shown = line.replace('two  --', 'two --') // a paragraph is filled
      assert.match(text, new RegExp(`^ +${escapedPattern(shown)}`, 'm'), text)
    }
    assert.match(text, /^ +-x, --ex-it to-where$/m)
    assert.match(text, /^ +own \[options\] file-name \.\.\.$/m)
  })

  it('leaves examples as they are', { skip }, async () => {
    const text = await rendered(pages.get('bandsox-completion.1') ?? '')
    assert.match(text, /^ +source <\(bandsox completion bash\)$/m)
    assert.match(text, /^ +bandsox completion fish > ~\/\.config\/fish\/completions\/bandsox\.fish$/m)
  })
})

const escapedPattern = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&').replace(/ +/g, ' +')
