import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Command } from 'commander'
import { globalOptions, ownOptions, subcommandsOf, withDescendants } from '../command-tree.js'
import { buildProgram } from '../program.js'
import { type Completion, complete, completionText, type Name } from './complete.js'
import { argumentKind } from './value-kinds.js'

const program = buildProgram(false)

const SANDBOXES: Name[] = [
  { value: 'web', description: 'running, alpine' },
  { value: 'worker', description: 'stopped, alpine' },
]
const SNAPSHOTS: Name[] = [{ value: 'trained', description: 'snp_abc' }]
const IMAGES: Name[] = [{ value: 'alpine:3.20', inFull: 'docker.io/library/alpine:3.20' }, { value: 'bandsox/base' }]

interface Setting {
  of?: Command
  sandboxes?: Name[]
  asked?: (storage: string | undefined) => void
}

/** @param line As typed; a blank at its end begins a new word. */
async function after(line: string, { of = program, sandboxes = SANDBOXES, asked }: Setting = {}): Promise<Completion> {
  return await complete(of, line.split(' '), (storage) => {
    asked?.(storage)
    return { sandboxes: async () => sandboxes, images: async () => IMAGES, snapshots: async () => SNAPSHOTS }
  })
}

const valuesAfter = async (line: string, setting?: Setting): Promise<string[]> =>
  (await after(line, setting)).candidates.map(({ value }) => value)

describe('completion', () => {
  it('offers the commands of each level with their aliases and descriptions, and not the hidden ones', async () => {
    for (const command of withDescendants(program).filter((each) => each.commands.length > 0)) {
      const line = command === program ? '' : `${command.name()} `
      const { candidates } = await after(line)
      for (const child of subcommandsOf(command)) {
        for (const name of [child.name(), ...child.aliases()]) {
          const found = candidates.find(({ value }) => value === name)
          assert.ok(found?.description, `${line}${name}`)
        }
      }
    }
    const values = await valuesAfter('')
    assert.ok(values.includes('vm') && values.includes('help'), values.join(' '))
    assert.ok(!values.some((value) => value.startsWith('_')), values.join(' '))
  })

  it('offers every option of every command, those that all share among them', async () => {
    for (const command of withDescendants(program)) {
      const path = command === program ? '' : `${lineTo(command)} `
      const values = await valuesAfter(`${path}-`)
      for (const { long } of [...ownOptions(command), ...globalOptions(command)])
        assert.ok(values.includes(long ?? ''), `${path}: ${long}`)
      if (command.commands.length === 0) assert.ok(values.includes('--storage'), path)
    }
    assert.ok((await valuesAfter('-')).includes('--version'))
    assert.ok(!(await valuesAfter('vm -')).includes('--json'), 'a group of commands would refuse it')
  })

  it('offers the choices of an option, in both ways to write it, and of an argument', async () => {
    assert.deepEqual(await valuesAfter('create --vsock '), ['auto', 'on', 'off'])
    assert.deepEqual(await valuesAfter('create --vsock=a'), ['--vsock=auto', '--vsock=on', '--vsock=off'])
    assert.deepEqual(await valuesAfter('--log-level '), ['debug', 'info', 'warn', 'error'])
    assert.deepEqual(await valuesAfter('completion '), ['bash', 'zsh', 'fish'])
    assert.deepEqual(await valuesAfter('create --name '), [])
    assert.deepEqual(await valuesAfter('create --password-stdin='), [])
  })

  it('knows where a sandbox stands, and names each once', async () => {
    for (const line of ['vm show ', 'logs -f ', 'exec --env A=1 -w/root -i ', 'upload ', '--json vm stop '])
      assert.deepEqual(await valuesAfter(line), ['web', 'worker'], line)
    assert.deepEqual(await valuesAfter('vm rm web '), ['worker'])
    assert.deepEqual(await valuesAfter('vm show web '), [])
    assert.deepEqual((await after('vm show ')).candidates[0]?.description, 'running, alpine')
  })

  it('knows where an image stands, and the long form of its reference', async () => {
    for (const line of ['run ', 'create --mem 512 ', 'image export ', 'image rm x '])
      assert.deepEqual(await valuesAfter(line), ['alpine:3.20', 'bandsox/base'], line)
    assert.deepEqual(await valuesAfter('run docker.io/l'), ['docker.io/library/alpine:3.20', 'bandsox/base'])
  })

  it('knows where a snapshot stands', async () => {
    for (const line of ['snapshot restore ', 'snapshot show ', 'snapshot delete x '])
      assert.deepEqual(await valuesAfter(line), ['trained'], line)
  })

  it('asks for names in the storage folder that the line names', async () => {
    for (const [line, storage] of [
      ['vm show ', undefined],
      ['--storage /a vm show ', '/a'],
      ['vm show --storage=/b ', '/b'],
    ] as const) {
      let asked: string | undefined = 'nothing asked'
      await after(line, { asked: (given) => (asked = given) })
      assert.equal(asked, storage, line)
    }
  })

  it('leaves paths of this host to the shell', async () => {
    for (const line of ['upload web ', 'download web /etc/os-release ', 'image import ', 'image export alpine '])
      assert.deepEqual(await after(line), { candidates: [], paths: 'files' }, line)
    for (const line of ['--storage ', 'vm list --storage=/va', 'man --output '])
      assert.deepEqual(await after(line), { candidates: [], paths: 'folders' }, line)
    for (const line of ['upload web a ', 'download web ', 'exec -w '])
      assert.deepEqual(await after(line), { candidates: [] }, line)
  })

  it('takes no part in the words of the guest', async () => {
    for (const line of [
      'exec web ',
      'exec web -',
      'exec web ls --',
      'exec web -- ls -',
      'run alpine --vsock ',
      'run -i alpine sh ',
    ])
      assert.deepEqual(await after(line), { candidates: [] }, line)
    assert.ok((await valuesAfter('exec -')).includes('--shell'))
  })

  it('takes for words of the guest exactly those that the command passes on', () => {
    for (const command of withDescendants(buildProgram(false)).filter((each) => each.commands.length === 0)) {
      const isOfGuest = command.registeredArguments.some((argument) => argumentKind(argument) === 'guest')
      const { operands } = command.parseOptions(['web', '--of-nobody'])
      assert.equal(operands.includes('--of-nobody'), isOfGuest, command.name())
    }
  })

  it('offers no options behind --, names of commands behind help, and nothing after words that make no sense', async () => {
    assert.deepEqual(await valuesAfter('vm show -- -'), ['web', 'worker'])
    assert.ok((await valuesAfter('help ')).includes('create'))
    assert.ok((await valuesAfter('vm help ')).includes('list'))
    for (const line of ['frobnicate ', 'vm frobnicate ', 'vm list --frobnicate ', 'help vm ', 'vm list '])
      assert.deepEqual(await after(line), { candidates: [] }, line)
  })

  it('reads options whose value may be left out, or that take several', async () => {
    const own = new Command('own')
      .argument('<vm>')
      .option('--color [when]')
      .option('-l, --label <label...>')
      .option('-v')
    const values = (line: string) => valuesAfter(line, { of: own })
    assert.deepEqual(await values('-vl a b '), [])
    assert.ok((await values('-l a b -')).includes('--color'))
    assert.ok((await values('--color -')).includes('--label'))
    assert.deepEqual(await values('--color -v '), ['web', 'worker'])
    assert.deepEqual(await values('-vla '), ['web', 'worker'], 'one that has its value within the word takes no more')
  })
})

describe('what is printed', () => {
  it('has a line for each candidate, and a request for paths that is no value', () => {
    const candidates = [{ value: 'list', description: 'list all' }, { value: 'ls' }]
    assert.equal(completionText({ candidates }), 'list\tlist all\nls\n')
    assert.equal(completionText({ candidates: [], paths: 'files' }), '<files>\n')
    assert.equal(completionText({ candidates: [{ value: '--vsock=auto' }] }), '--vsock=auto\n')
  })

  it('has nothing of a name, or about it, that a shell or a terminal could obey', async () => {
    const hostile = [
      '$(id)',
      '`id`',
      'a b',
      'a\tb',
      'a\nlist',
      '\u001b[2J',
      '*',
      '~root',
      "'",
      ';',
      '',
      'ä',
      'a=b',
      '<files>',
      '--force',
      '-x',
    ]
    const sandboxes = hostile.map((value) => ({ value, description: 'running, alpine' }))
    assert.equal(completionText(await after('vm rm ', { sandboxes })), '')
    for (const description of hostile.filter((each) => each !== 'a b' && !each.startsWith('-'))) {
      const text = completionText(await after('vm rm ', { sandboxes: [{ value: 'web', description }] }))
      assert.equal(text, 'web\n', description)
    }
  })
})

const lineTo = (command: Command): string =>
  command.parent?.parent === null || command.parent === null
    ? command.name()
    : `${lineTo(command.parent)} ${command.name()}`
