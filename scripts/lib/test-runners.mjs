/** Runs each kind of test, prints what its runner prints, and counts. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { run } from 'node:test'
import { spec } from 'node:test/reporters'
import { findProgram, tryCommand } from './command.mjs'

/** @typedef {{ passed: number, failed: number, skipped: number }} Counts */

/** @param {Counts[]} results */
export const addUp = (results) =>
  results.reduce(
    (sum, each) => ({
      passed: sum.passed + each.passed,
      failed: sum.failed + each.failed,
      skipped: sum.skipped + each.skipped,
    }),
    { passed: 0, failed: 0, skipped: 0 },
  )

/** @param {string} title */
const heading = (title) => console.log(`\n── ${title} ${'─'.repeat(Math.max(0, 60 - title.length))}`)

/**
 * Formatter, linters and import rules; each counts as one test.
 *
 * @param {string} root
 * @returns {Promise<Counts>}
 */
export async function styleChecks(root) {
  heading('style')
  const tool = (/** @type {string} */ name) => join(root, 'node_modules/.bin', name)
  const checks = [
    { name: 'format and lint (biome)', argv: [tool('biome'), 'check', '.'] },
    {
      name: 'imports run one way (dependency-cruiser)',
      argv: [
        tool('depcruise'),
        '--config',
        '.dependency-cruiser.cjs',
        'packages/sdk/src',
        'packages/bandsox/src',
        'e2e',
        'bench',
      ],
    },
  ]
  const results = []
  for (const { name, argv } of checks) {
    const { code, stdout, stderr } = await tryCommand(argv, { cwd: root })
    results.push(report(name, code === 0, `${stdout}\n${stderr}`))
  }
  return addUp(results)
}

/**
 * `gofmt`, `go vet` and `go test` of the guest's module; skipped, with a sentence, where there is no Go.
 *
 * @param {string} folder
 * @param {NodeJS.ProcessEnv} env
 * @returns {Promise<Counts>}
 */
export async function goTests(folder, env) {
  heading('go')
  if ((await findProgram('go', env)) === undefined) {
    console.log(
      'skipped: Go is not installed, and the programs were built before; to run them: apt-get install golang-go',
    )
    return { passed: 0, failed: 0, skipped: 1 }
  }
  const unformatted = await tryCommand(['gofmt', '-l', '.'], { cwd: folder })
  const vet = await tryCommand(['go', 'vet', './...'], { cwd: folder })
  const results = [
    report('gofmt', unformatted.code === 0 && unformatted.stdout === '', unformatted.stdout),
    report('go vet', vet.code === 0, vet.stderr),
  ]
  const child = spawn('go', ['test', '-count=1', '-json', './...'], {
    cwd: folder,
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const closed = once(child, 'close')
  const counts = { passed: 0, failed: 0, skipped: 0 }
  /** @type {Map<string, string>} */
  const output = new Map()
  for await (const line of createInterface({ input: child.stdout })) {
    const event = parseEvent(line)
    if (event === undefined)
      console.log(line) // what the tool itself says, such as a build error
    else countGoEvent(event, counts, output)
  }
  const [code] = await closed
  if (code !== 0 && counts.failed === 0) counts.failed = 1 // it did not even build
  return addUp([...results, counts])
}

/** @param {string} line */
function parseEvent(line) {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}

/**
 * @param {{ Action: string, Package: string, Test?: string, Output?: string, Elapsed?: number }} event
 * @param {Counts} counts
 * @param {Map<string, string>} output What each test printed, shown when it fails.
 */
function countGoEvent(event, counts, output) {
  const key = `${event.Package} ${event.Test ?? ''}`
  if (event.Action === 'output') output.set(key, (output.get(key) ?? '') + event.Output)
  const label = event.Package.replace(/^bandsox\.dev\/guest\//, '')
  if (event.Test === undefined) {
    if (event.Action === 'pass') console.log(`ok ${label} (${event.Elapsed} s)`)
    if (event.Action === 'fail') console.log(`FAILED ${label}\n${output.get(key) ?? ''}`)
    return
  }
  if (event.Action === 'pass') counts.passed++
  if (event.Action === 'skip') counts.skipped++
  if (event.Action === 'skip')
    console.log(`skipped ${label} ${event.Test}: ${output.get(key)?.split('\n').at(-3)?.trim() ?? ''}`)
  if (event.Action === 'fail') {
    counts.failed++
    console.log(`FAILED ${label} ${event.Test}\n${output.get(key) ?? ''}`)
  }
  if (['pass', 'skip', 'fail'].includes(event.Action)) output.delete(key)
}

/**
 * @param {string} title
 * @param {string[]} files
 * @param {{ timeoutMs: number, concurrency: number }} options `timeoutMs` bounds each file.
 * @returns {Promise<Counts>}
 */
export async function nodeTests(title, files, { timeoutMs, concurrency }) {
  heading(title)
  const counts = { passed: 0, failed: 0, skipped: 0 }
  const stream = run({ files, concurrency, timeout: timeoutMs })
  stream.on('test:pass', (event) => {
    if (event.details.type === 'suite') return
    if (event.skip !== undefined) counts.skipped++
    else counts.passed++
  })
  stream.on('test:fail', (event) => {
    if (event.details.type !== 'suite') counts.failed++
  })
  const printed = stream.compose(new spec())
  printed.pipe(process.stdout, { end: false })
  await once(printed, 'end')
  return counts
}

/**
 * @param {string} name
 * @param {boolean} isGood
 * @param {string} output
 * @returns {Counts}
 */
function report(name, isGood, output) {
  console.log(isGood ? `ok ${name}` : `FAILED ${name}\n${output}`)
  return isGood ? { passed: 1, failed: 0, skipped: 0 } : { passed: 0, failed: 1, skipped: 0 }
}
