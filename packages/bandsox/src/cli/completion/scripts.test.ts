/** The scripts, each in its shell, with the command itself behind them. */
import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { ImageStore } from '../../image/image-store.js'
import { SandboxStore } from '../../store/sandbox-store.js'
import { sampleRecord } from '../../testing/sample-record.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { completionScripts, type Shell } from './scripts.js'

const MAIN = fileURLToPath(new URL('../main.js', import.meta.url))
const SHELL_TIMEOUT_MS = 20_000

const skipWithout = (shell: Shell) => ({
  skip: spawnSync(shell, ['-c', 'true']).status === 0 ? false : `${shell} is not installed: apt-get install ${shell}`,
})

let folder: string
let env: NodeJS.ProcessEnv
const releases: (() => Promise<void> | void)[] = []

/** What each shell is asked: words before the cursor, the last of which it completes; and what it must offer, exactly. */
const expected: [string[], string[]][] = [
  [
    ['vm', 'l'],
    ['label', 'list', 'ls'],
  ],
  [['exec', '--st'], ['--storage']],
  [
    ['create', '--vsock=o'],
    ['--vsock=off', '--vsock=on'],
  ],
  [
    ['vm', 'stop', 'w'],
    ['web', 'worker'],
  ],
  [['run', 'docker.io/library/alpine:3'], ['docker.io/library/alpine:3.20']],
  [['exec', 'web', 'ls', '-'], []],
  [['--storage', 'elsewhere', 'vm', 'show', ''], []],
  [['vm', 'show', '$'], []],
]

const ofPaths: [string[], string][] = [
  [['upload', 'web', 'some'], 'some file'],
  [['vm', 'list', '--storage=some'], '--storage=some folder/'],
]

before(async () => {
  folder = await temporaryFolder({ after: (release) => releases.push(release) })
  const bin = path.join(folder, 'bin')
  const broken = path.join(folder, 'broken')
  for (const name of [bin, broken, path.join(folder, 'work', 'some folder')]) await mkdir(name, { recursive: true })
  await writeFile(path.join(folder, 'work', 'some file'), '')
  await writeFile(path.join(bin, 'bandsox'), `#!/bin/sh\nexec '${process.execPath}' '${MAIN}' "$@"\n`)
  await writeFile(path.join(broken, 'bandsox'), '#!/bin/sh\necho broken >&2\nexit 70\n')
  for (const name of [bin, broken]) await chmod(path.join(name, 'bandsox'), 0o755)
  env = {
    PATH: `${bin}:${process.env['PATH']}`,
    HOME: folder, // a shell's own configuration must have no say
    BANDSOX_STORAGE: await storage(),
    OWNED: path.join(folder, 'owned'),
    LC_ALL: 'C.UTF-8',
  }
})
after(async () => {
  for (const release of releases) await release()
})

/** Its path needs quotes, and one of its sandboxes has a name that no shell may run. */
async function storage(): Promise<string> {
  const root = path.join(folder, 'my storage')
  const store = await SandboxStore.open(root)
  const names = ['web', 'worker', '$(touch $OWNED)', '`touch $OWNED`', "'; touch $OWNED; '", '*']
  for (const [index, name] of names.entries()) {
    const { release } = await store.insert(sampleRecord({ id: `sbx_aaaaaaaaa${'abcdefgh'[index]}`, name }))
    await release()
  }
  store.close()
  const images = new ImageStore(path.join(root, 'images'))
  await images.open()
  const image = `sha256:${'0'.repeat(64)}`
  for (const reference of ['docker.io/library/alpine:3.20', 'bandsox/base'])
    await images.writeReference({ version: 1, reference, image, origin: 'registry', root: image })
  return root
}

/** @returns What it printed. Whatever it says on stderr would stand in somebody's prompt. */
async function run(argv: string[], over: NodeJS.ProcessEnv = {}): Promise<string> {
  const [program = '', ...args] = argv
  const options = { env: { ...env, ...over }, cwd: path.join(folder, 'work'), timeout: SHELL_TIMEOUT_MS }
  const { stdout, stderr } = await promisify(execFile)(program, args, options)
  assert.equal(stderr, '')
  assert.equal(existsSync(path.join(folder, 'owned')), false, 'a name was run')
  return stdout
}

/** Of several questions in one shell: a line that names each, and the lines below it. */
function answers(output: string): string[][] {
  return output
    .split(/^asked$/m)
    .slice(1)
    .map((part) => part.split('\n').filter((line) => line !== ''))
}

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`
const valuesOf = (lines: readonly string[] | undefined): string[] =>
  (lines ?? []).map((line) => line.split('\t')[0] ?? '')

describe('the script', { concurrency: 2 }, () => {
  describe('in bash', skipWithout('bash'), () => {
    /** As readline has it: words are split at `=` and `:` as well, and only what follows the last of these is replaced. */
    const ask = (words: readonly string[]): string => {
      const typed = ['bandsox', ...words]
      const parts = typed.flatMap((word) => word.split(/([=:])/).filter((part, index) => part !== '' || index === 0))
      return askFor(parts.map(quoted), typed.join(' '))
    }
    const askFor = (parts: readonly string[], line: string, point = line.length): string =>
      [
        `COMP_WORDS=(${parts.join(' ')}) COMP_CWORD=${parts.length - 1} COMP_LINE=${quoted(line)} COMP_POINT=${point}`,
        `_bandsox; echo asked; printf '%s\\n' "\${COMPREPLY[@]}"`,
      ].join('\n')
    /** `compopt` speaks only within readline. */
    const bash = (lines: string[], over: NodeJS.ProcessEnv = {}) => {
      const script = ['compopt() { echo "compopt $*"; }', completionScripts.bash, ...lines].join('\n')
      return run(['bash', '--noprofile', '--norc', '-c', script], over)
    }

    it('completes commands, options, choices and names, and nothing of the guest', async () => {
      const found = answers(await bash(expected.map(([words]) => ask(words))))
      for (const [index, [words, values]] of expected.entries()) {
        const last = words.at(-1) ?? ''
        const head = last.slice(0, last.search(/[^=:]*$/))
        const expectedValues = values.map((value) => value.slice(head.length))
        assert.deepEqual(found[index]?.sort(), expectedValues, words.join(' '))
      }
    })

    it('leaves paths to readline', async () => {
      const output = await bash(ofPaths.map(([words]) => ask(words)))
      assert.deepEqual(
        output.split('\n').filter((line) => line.startsWith('compopt')),
        ['compopt -o default', 'compopt -o dirnames'],
      )
    })

    it('understands quotes, and a cursor within a word', async () => {
      const folder = `'${env['BANDSOX_STORAGE']}'`
      const lines = [
        'BANDSOX_STORAGE=/nonexistent',
        askFor(['bandsox', '--storage', quoted(folder), 'vm', 'show', 'we'], `bandsox --storage ${folder} vm show we`),
        askFor(['bandsox', 'vm', 'shabby'], 'bandsox vm shabby', 'bandsox vm sh'.length),
      ]
      assert.deepEqual(answers(await bash(lines)), [['web'], ['show']])
    })

    it('says nothing when the command fails', async () => {
      const output = await bash([ask(['vm', 'sh'])], { PATH: `${path.join(folder, 'broken')}:${process.env['PATH']}` })
      assert.equal(output.trim(), 'asked')
    })
  })

  describe('in zsh', skipWithout('zsh'), () => {
    /** The names that zsh's own functions would be called with; matching is theirs. */
    const stubs = [
      'compdef() { :; }',
      '_describe() { print -rl -- $found; }',
      'compset() { print -r -- "compset $*"; }',
      '_files() { print -r -- "_files $*"; }',
    ]
    const ask = (words: readonly string[]): string =>
      `words=(bandsox ${words.map(quoted).join(' ')}); CURRENT=$#words; PREFIX=${quoted(words.at(-1) ?? '')}; echo asked; _bandsox`
    /** A colon ends the value, unless there is a backslash before it. */
    const described = (lines: readonly string[] | undefined): string[] =>
      (lines ?? []).map((line) => (/^(?:[^:\\]|\\:)*/.exec(line)?.[0] ?? '').replaceAll('\\:', ':'))
    const zsh = (lines: string[], over: NodeJS.ProcessEnv = {}) =>
      run(['zsh', '-f', '-c', [...stubs, completionScripts.zsh, ...lines].join('\n')], over)

    it('completes commands, options, choices and names, and nothing of the guest', async () => {
      const found = answers(await zsh(expected.map(([words]) => ask(words))))
      for (const [index, [words, values]] of expected.entries()) {
        const matching = described(found[index]).filter((value) => value.startsWith(words.at(-1) ?? ''))
        assert.deepEqual(matching.sort(), values, words.join(' '))
      }
      assert.ok(found[0]?.includes('list:list the sandboxes'), found[0]?.join('\n'))
      assert.ok(found[3]?.includes('web:stopped, bandsox/base'), found[3]?.join('\n'))
    })

    it("leaves paths to zsh's own function", async () => {
      const found = answers(await zsh(ofPaths.map(([words]) => ask(words))))
      assert.deepEqual(found, [['_files '], ['compset -P *=', '_files -/']])
    })

    it('understands quotes', async () => {
      const words = `words=(bandsox --storage "'$BANDSOX_STORAGE'" vm show '') CURRENT=6 PREFIX=`
      const line = `${words}; echo asked; BANDSOX_STORAGE=/nonexistent _bandsox`
      assert.deepEqual(described(answers(await zsh([line]))[0]).slice(0, 2), ['web', 'worker'])
    })

    it('is found in a folder of fpath', async () => {
      await writeFile(path.join(folder, 'work', '_bandsox'), completionScripts.zsh)
      const script = 'fpath=($PWD $fpath); autoload -Uz compinit; compinit -D -u; print -r -- $_comps[bandsox]'
      assert.equal(await run(['zsh', '-f', '-c', script]), '_bandsox\n')
    })

    it('says nothing when the command fails', async () => {
      const output = await zsh([ask(['vm', 'sh'])], { PATH: `${path.join(folder, 'broken')}:${process.env['PATH']}` })
      assert.equal(output.trim(), 'asked')
    })
  })

  describe('in fish', skipWithout('fish'), () => {
    const ask = (words: readonly string[]): string =>
      `echo asked; complete -C ${quoted(['bandsox', ...words.map((word) => word.replaceAll('$', '\\$'))].join(' '))}`
    const fish = (lines: string[], over: NodeJS.ProcessEnv = {}) =>
      run(['fish', '--no-config', '-c', [completionScripts.fish, ...lines].join('\n')], over)

    it('completes commands, options, choices and names, and nothing of the guest', async () => {
      const found = answers(await fish(expected.map(([words]) => ask(words))))
      for (const [index, [words, values]] of expected.entries()) {
        const matching = valuesOf(found[index]).filter((value) => value.startsWith(words.at(-1) ?? ''))
        assert.deepEqual(matching.sort(), values, words.join(' '))
      }
      assert.ok(found[0]?.includes('list\tlist the sandboxes'), found[0]?.join('\n'))
      assert.ok(found[3]?.includes('web\tstopped, bandsox/base'), found[3]?.join('\n'))
    })

    it("leaves paths to fish's own functions", async () => {
      const found = answers(await fish(ofPaths.map(([words]) => ask(words))))
      for (const [index, [words, value]] of ofPaths.entries())
        assert.ok(valuesOf(found[index]).includes(value), `${words.join(' ')}: ${found[index]?.join('\n')}`)
      assert.ok(!found[1]?.join('\n').includes('some file'), 'a file was offered as a folder')
    })

    it('understands quotes', async () => {
      const line = `set -gx BANDSOX_STORAGE /nonexistent; echo asked; complete -C "bandsox --storage '${env['BANDSOX_STORAGE']}' vm show we"`
      assert.deepEqual(valuesOf(answers(await fish([line]))[0]), ['web'])
    })

    it('says nothing when the command fails', async () => {
      const output = await fish([ask(['vm', 'sh'])], { PATH: `${path.join(folder, 'broken')}:${process.env['PATH']}` })
      assert.equal(output.trim(), 'asked')
    })
  })
})
