#!/usr/bin/env node
/**
 * Sets a host up, from a fresh checkout to a machine that can boot sandboxes. What is there is left alone, so running it
 * again is quick and changes nothing.
 */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { areGuestProgramsBuilt, buildGuestPrograms } from './lib/guest-programs.mjs'
import { prepareStorage } from './lib/host.mjs'
import { ensureNodeModules } from './lib/node-modules.mjs'
import { ensurePackages, goRequirement, requirements } from './lib/packages.mjs'
import { cacheFolder, nativeFolder, root, storageFolder } from './lib/paths.mjs'
import { checkPlatform } from './lib/platform.mjs'
import { runSteps } from './lib/step.mjs'
import { buildTypeScript } from './lib/typescript.mjs'
import { ensureVsock } from './lib/vsock.mjs'

const usage = `usage: npm run setup -- [options]

  --no-install           install no system packages and build no vsock backend: only say what is missing
  --kernel SOURCE        guest kernel: a path or URL of a bzImage or an ELF vmlinux; "distribution": the newest of this
                         distribution (default: the one that is there, else the distribution's)
  --kernel-modules PATH  folder or tar with that kernel's modules
  --kernel-sha256 HEX    digest that the kernel's file must have
`

/**
 * @typedef {object} SetUpOptions
 * @property {NodeJS.ProcessEnv} [env]
 * @property {boolean} [install] Default true.
 * @property {'distribution' | { kernel: string, modules?: string, sha256?: string }} [kernelSource]
 * @property {(line: string) => void} [print]
 */

/**
 * Runs all steps.
 *
 * @param {SetUpOptions} [options]
 * @returns {Promise<string[]>} Names of the steps that failed; none: the host is ready.
 */
export function setUp({ env = process.env, install = true, kernelSource, print = console.log } = {}) {
  const folders = { guest: join(root, 'guest'), native: nativeFolder }
  const storage = storageFolder(env, process.getuid?.() === 0)
  return runSteps(
    [
      { name: 'platform', run: async () => checkPlatform() },
      {
        name: 'packages',
        needs: ['platform'],
        run: async (activity) => {
          const wanted = (await areGuestProgramsBuilt(folders)) ? requirements : [...requirements, goRequirement]
          return ensurePackages({ wanted, env, install, activity })
        },
      },
      { name: 'npm', needs: ['platform'], run: (activity) => ensureNodeModules({ root, env, activity }) },
      { name: 'typescript', needs: ['npm'], run: (activity) => buildTypeScript({ root, env, activity }) },
      { name: 'guest', needs: ['packages'], run: (activity) => buildGuestPrograms({ ...folders, env, activity }) },
      {
        name: 'vsock',
        needs: ['platform'],
        run: (activity) => ensureVsock({ env, cache: cacheFolder(env), install, activity }),
      },
      {
        name: 'host',
        needs: ['packages', 'typescript', 'guest'],
        run: (activity) => {
          const agentPath = join(nativeFolder, 'bandsox-agent')
          return prepareStorage({ root, storage, agentPath, kernelSource, env, install, activity })
        },
      },
    ],
    print,
  )
}

/** @param {string[]} args */
function parseOptions(args) {
  const { values } = parseArgs({
    args,
    options: {
      help: { type: 'boolean', default: false },
      'no-install': { type: 'boolean', default: false },
      kernel: { type: 'string' },
      'kernel-modules': { type: 'string' },
      'kernel-sha256': { type: 'string' },
    },
  })
  const { kernel, 'kernel-modules': modules, 'kernel-sha256': sha256 } = values
  return { help: values.help, install: !values['no-install'], kernelSource: chooseKernel(kernel, { modules, sha256 }) }
}

/**
 * @param {string | undefined} kernel
 * @param {{ modules: string | undefined, sha256: string | undefined }} about
 * @returns {SetUpOptions['kernelSource']}
 */
function chooseKernel(kernel, about) {
  if (kernel === undefined || kernel === 'distribution') return kernel
  return { kernel, ...about }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { help, ...options } = parseOptions(process.argv.slice(2))
  if (help) {
    process.stdout.write(usage)
  } else {
    const failed = await setUp(options)
    if (failed.length > 0) {
      console.error(`set-up is not complete: ${failed.join(', ')}`)
      process.exitCode = 1
    }
  }
}
