/** `completion`, `__complete` and `man`, run as a user or a shell runs them. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { completionScripts, shells } from '../completion/scripts.js'
import { manPages } from '../man/pages.js'
import { buildProgram } from '../program.js'

const MAIN = fileURLToPath(new URL('../main.js', import.meta.url))

/** @returns stdout. Fails when the command does, or when it has something to say on stderr. */
async function bandsox(args: string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [MAIN, ...args], { env, timeout: 15_000 })
  assert.equal(stderr, '')
  return stdout
}

describe('bandsox completion', { concurrency: 2 }, () => {
  for (const shell of shells)
    it(`prints the script of ${shell}`, async () =>
      assert.equal(await bandsox(['completion', shell]), completionScripts[shell]))
})

describe('bandsox __complete', { concurrency: 2 }, () => {
  it('answers nothing, and says nothing, when words make no sense', async () => {
    for (const words of [
      ['frobnicate', ''],
      ['vm', 'list', 'more', ''],
      ['--frobnicate', ''],
    ])
      assert.equal(await bandsox(['__complete', '--', ...words]), '', words.join(' '))
  })

  it('obeys none of the words that it is asked about', async () => {
    for (const words of [[], ['--version', ''], ['--json', '']])
      assert.match(await bandsox(['__complete', '--', ...words]), /^create\t/, words.join(' '))
  })

  it('answers nothing, says nothing and makes nothing where the storage is missing or broken', async (t) => {
    const folder = await temporaryFolder(t)
    const missing = path.join(folder, 'missing')
    const broken = path.join(folder, 'broken')
    await mkdir(path.join(broken, 'vms', 'sbx_aaaaaaaaaa'), { recursive: true })
    await writeFile(path.join(broken, 'vms', 'sbx_aaaaaaaaaa', 'sandbox.json'), '{')
    await writeFile(path.join(broken, 'images'), 'no folder')
    for (const [storage, command] of [
      [missing, 'exec'],
      [missing, 'run'],
      [broken, 'exec'],
      [broken, 'run'],
    ] as const)
      assert.equal(await bandsox(['__complete', '--', '--storage', storage, command, '']), '', `${storage} ${command}`)
    assert.deepEqual((await readdir(folder)).sort(), ['broken'])
    assert.deepEqual((await readdir(broken)).sort(), ['images', 'vms'])
  })

  it('is in no help', async () => {
    const help = await bandsox(['--help'])
    assert.doesNotMatch(help, /__complete/)
    assert.match(help, /completion/)
  })
})

describe('bandsox man', { concurrency: 2 }, () => {
  const pages = manPages(buildProgram(false))

  it('prints the first page, or all as JSON', async () => {
    assert.equal(await bandsox(['man']), pages[0]?.text)
    assert.deepEqual(JSON.parse(await bandsox(['man', '--json'])), { pages })
  })

  it('writes every page into a folder', async (t) => {
    const folder = path.join(await temporaryFolder(t), 'new', 'man1')
    const output = await bandsox(['man', '--output', folder])
    assert.equal(output, `${pages.length} pages written: ${folder}\n`)
    assert.deepEqual((await readdir(folder)).sort(), pages.map(({ file }) => file).sort())
    for (const { file, text } of pages) assert.equal(await readFile(path.join(folder, file), 'utf8'), text)
  })
})
