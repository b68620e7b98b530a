#!/usr/bin/env node
/**
 * Runs the tests: sets the host up, then style, Go, TypeScript, and end-to-end tests on real VMs. The last line is the sum.
 *
 *   npm test                 all of them, bounded
 *   npm run soak             the same with full counts
 *   npm test -- --only PART  one of: style, go, unit, e2e
 */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { command } from './lib/command.mjs'
import { prepareStorage } from './lib/host.mjs'
import { commandLineTestRequirements, ensurePackages, testRequirements } from './lib/packages.mjs'
import { cacheFolder, nativeFolder, root } from './lib/paths.mjs'
import { runSteps, StepError } from './lib/step.mjs'
import { addUp, goTests, nodeTests, styleChecks } from './lib/test-runners.mjs'
import { setUp } from './setup.mjs'

/** A file of tests that takes longer hangs. */
const UNIT_FILE_TIMEOUT_MS = 120_000
const E2E_FILE_TIMEOUT_MS = 400_000
const SOAK_FILE_TIMEOUT_MS = 3 * 3_600_000

const { values } = parseArgs({ options: { only: { type: 'string' }, soak: { type: 'boolean', default: false } } })
const isWanted = (/** @type {string} */ part) => values.only === undefined || values.only === part

const storage = join(cacheFolder(process.env), 'test-storage')
const failed = await setUp()
if (failed.length === 0) failed.push(...(await runSteps(testSetUp(), console.log)))
if (failed.length > 0) {
  console.error(`the tests cannot begin, set-up is not complete: ${failed.join(', ')}`)
  process.exit(1)
}

/** @type {import('./lib/test-runners.mjs').Counts[]} */
const results = []
if (isWanted('style') && !values.soak) results.push(await styleChecks(root))
if (isWanted('go')) {
  const env = values.soak ? { ...process.env, BANDSOX_SOAK: '1' } : process.env
  results.push(await goTests(join(root, 'guest'), env))
}
if (isWanted('unit') && !values.soak) {
  const files = [...(await testFiles('packages/sdk/dist')), ...(await testFiles('packages/bandsox/dist'))]
  results.push(
    await nodeTests('unit', [...files, ...(await testFiles('scripts'))], {
      timeoutMs: UNIT_FILE_TIMEOUT_MS,
      concurrency: 2,
    }),
  )
}
if (isWanted('e2e')) {
  process.env.BANDSOX_TEST_STORAGE = storage
  // Tests that create a sandbox would have a template made beside it, each in its own storage: those of templates ask for it.
  process.env.BANDSOX_TEMPLATES = 'off'
  if (values.soak) process.env.BANDSOX_SOAK = '1'
  const timeoutMs = values.soak ? SOAK_FILE_TIMEOUT_MS : E2E_FILE_TIMEOUT_MS
  // Two at a time: a VM under emulation keeps one core busy while it boots.
  results.push(
    await nodeTests('end to end', await testFiles('e2e/dist'), { timeoutMs, concurrency: values.soak ? 1 : 2 }),
  )
}
const { passed, failed: failures, skipped } = addUp(results)
process.exitCode = failures > 0 || passed === 0 ? 1 : 0
console.log(`${passed} passed, ${failures} failed, ${skipped} skipped`)

/** @returns {import('./lib/step.mjs').Step[]} */
function testSetUp() {
  return [
    {
      name: 'test code',
      run: async () => {
        await command([process.execPath, join(root, 'node_modules/typescript/bin/tsc'), '-b'], { cwd: root })
        return { detail: 'all projects' }
      },
    },
    { name: 'test tools', run: ensureTestTools },
    {
      name: 'test storage',
      run: () =>
        prepareStorage({
          root,
          storage,
          agentPath: join(nativeFolder, 'bandsox-agent'),
          kernelSource: undefined,
          env: process.env,
          install: true,
        }),
    },
  ]
}

/**
 * Without them the tests that need them are skipped, and say so.
 *
 * @param {(text: string) => void} activity
 * @returns {Promise<import('./lib/step.mjs').Outcome>}
 */
async function ensureTestTools(activity) {
  try {
    const wanted = [...testRequirements, ...commandLineTestRequirements]
    return await ensurePackages({ wanted, env: process.env, install: true, activity })
  } catch (error) {
    if (!(error instanceof StepError)) throw error
    return { detail: '', lacking: error.message, ...(error.remedy === undefined ? {} : { remedy: error.remedy }) }
  }
}

/** @param {string} folder */
async function testFiles(folder) {
  const entries = await readdir(join(root, folder), { recursive: true })
  return entries
    .filter((name) => /\.test\.m?js$/.test(name))
    .sort()
    .map((name) => join(root, folder, name))
}
