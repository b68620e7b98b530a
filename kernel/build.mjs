#!/usr/bin/env node
/** Builds a guest kernel for BandSox from the distribution's own source. See docs/kernel.md. */
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { command } from '../scripts/lib/command.mjs'
import { ensurePackages, findPrivilege, kernelRequirements, refreshMissingLists } from '../scripts/lib/packages.mjs'
import { cacheFolder } from '../scripts/lib/paths.mjs'
import { checkPlatform } from '../scripts/lib/platform.mjs'
import { runSteps, StepError } from '../scripts/lib/step.mjs'
import { writeArtifact } from './artifact.mjs'
import { compareConfiguration, definedOptions, parseConfiguration } from './configuration.mjs'
import { fetchSource, findSourcePackage, META_PACKAGE } from './source.mjs'

const cache = cacheFolder(process.env)

const usage = `usage: npm run kernel -- [options]

  --output FOLDER    where the kernel goes: vmlinux, bzImage, and what describes them
                     (default ${join(cache, 'kernel')})
  --work FOLDER      for source and objects, some 2 GB, kept for the next build
                     (default ${join(cache, 'kernel-build')})
  --package NAME     package of sources, such as linux-source-6.1 (default: the one that ${META_PACKAGE} depends on)
  --jobs N           compilers at once (default: one for each processor)
  --only-configure   stop when the configuration stands
  --no-install       install no system packages: only say what is missing
`

/** All of it must come out as it is there. */
const WANTED = fileURLToPath(new URL('bandsox.config', import.meta.url))
/** The same, of what this kernel knows. */
const IF_KNOWN = fileURLToPath(new URL('version-dependent.config', import.meta.url))

const { values } = parseArgs({
  options: {
    help: { type: 'boolean', default: false },
    output: { type: 'string', default: join(cache, 'kernel') },
    work: { type: 'string', default: join(cache, 'kernel-build') },
    package: { type: 'string', default: META_PACKAGE },
    jobs: { type: 'string', default: String(availableParallelism()) },
    'only-configure': { type: 'boolean', default: false },
    'no-install': { type: 'boolean', default: false },
  },
})
const isUsable = /^[1-9]\d*$/.test(values.jobs)
if (values.help || !isUsable) {
  process.stdout.write(usage)
  process.exit(values.help ? 0 : 64)
}

const output = resolve(values.output)
/** @type {import('./source.mjs').Source} Of the step that fetches it; the later ones need that. */
let source
/** @type {string[]} */
let passedOver = []

/** @type {import('../scripts/lib/step.mjs').Step[]} */
const steps = [
  { name: 'platform', run: async () => checkPlatform() },
  {
    name: 'packages',
    needs: ['platform'],
    run: (activity) =>
      ensurePackages({ wanted: kernelRequirements, env: process.env, install: !values['no-install'], activity }),
  },
  {
    name: 'source',
    needs: ['packages'],
    run: async (activity) => {
      const sudo = values['no-install'] ? undefined : await findPrivilege(process.env)
      if (sudo !== undefined) await refreshMissingLists(sudo, process.env)
      const wanted = await findSourcePackage(values.package)
      activity(`downloading and unpacking ${wanted.name} ${wanted.version}`)
      const fetched = await fetchSource(wanted, resolve(values.work))
      source = fetched.source
      return { detail: `${wanted.name} ${wanted.version} in ${source.tree}`, changed: fetched.changed }
    },
  },
  {
    name: 'configure',
    needs: ['source'],
    run: async () => {
      const configured = await configure(source)
      passedOver = configured.passedOver
      const aside = passedOver.length === 0 ? '' : `; unknown to this kernel, and passed over: ${passedOver.join(' ')}`
      return { detail: `${configured.count} options are as wanted${aside}` }
    },
  },
]
if (!values['only-configure']) {
  steps.push(
    {
      name: 'build',
      needs: ['configure'],
      run: async (activity) => {
        activity('make bzImage: some minutes')
        await make(source, [`-j${values.jobs}`, 'bzImage'])
        return { detail: 'make bzImage', changed: true }
      },
    },
    {
      name: 'artifact',
      needs: ['build'],
      run: async () => {
        const { release, files } = await leaveArtifact(source)
        const sizes = Object.entries(files).map(([name, { sizeBytes }]) => `${name} ${mib(sizeBytes)}`)
        return {
          detail: `${release} in ${output}: ${sizes.join(', ')}`,
          changed: true,
        }
      },
    },
  )
}

const failed = await runSteps(steps, console.log)
if (failed.length > 0) {
  console.error(`there is no new kernel: ${failed.join(', ')}`)
  process.exitCode = 1
} else if (!values['only-configure']) {
  console.log(`\nuse it: npm run setup -- --kernel ${join(output, 'bzImage')}`)
}

/**
 * Everything off, then what is wanted; Kconfig adds what that needs.
 *
 * @param {import('./source.mjs').Source} source
 */
async function configure(source) {
  const texts = { wanted: await readFile(WANTED, 'utf8'), ifKnown: await readFile(IF_KNOWN, 'utf8') }
  const [wanted, ifKnown] = [parseConfiguration(texts.wanted, WANTED), parseConfiguration(texts.ifKnown, IF_KNOWN)]
  const fragment = join(source.tree, '.bandsox.config')
  await writeFile(fragment, `${texts.wanted}\n${texts.ifKnown}`)
  await make(source, [`KCONFIG_ALLCONFIG=${fragment}`, 'allnoconfig'])
  await make(source, ['olddefconfig'])
  const path = join(source.tree, '.config')
  const result = parseConfiguration(await readFile(path, 'utf8'), path)
  const compared = compareConfiguration({ wanted, ifKnown, result, known: await knownOptions(source.tree) })
  if (compared.unmet.length > 0) {
    throw new StepError(`this kernel cannot be had as it is wanted:\n  ${compared.unmet.join('\n  ')}`, {
      remedy: `see ${source.tree}, "make menuconfig" and "/", for what an option depends on; then change kernel/*.config`,
    })
  }
  return { passedOver: compared.passedOver, count: wanted.size + ifKnown.size - compared.passedOver.length }
}

/** @param {string} tree */
async function knownOptions(tree) {
  const names = await readdir(tree, { recursive: true })
  const own = names.filter((name) => /(^|\/)Kconfig[^/]*$/.test(name) && !/^arch\/(?!x86\/|Kconfig)/.test(name))
  const texts = await Promise.all(own.map((name) => readFile(join(tree, name), 'utf8')))
  return new Set(texts.flatMap(definedOptions))
}

/**
 * In an environment of its own: whatever a build takes from it would make two kernels of the same source differ.
 *
 * @param {import('./source.mjs').Source} source
 * @param {string[]} args
 */
function make({ tree, madeAt }, args) {
  const env = {
    PATH: process.env.PATH,
    HOME: process.env.HOME,
    LC_ALL: 'C',
    KBUILD_BUILD_TIMESTAMP: madeAt.toUTCString(),
    KBUILD_BUILD_USER: 'bandsox',
    KBUILD_BUILD_HOST: 'bandsox',
    KBUILD_BUILD_VERSION: '1',
  }
  // In the source's own folder: file names in the kernel are then relative, wherever that lies.
  return command(['make', '--directory', tree, ...args], { env })
}

/** @param {import('./source.mjs').Source} source */
async function leaveArtifact(source) {
  const release = (await readFile(join(source.tree, 'include/config/kernel.release'), 'utf8')).trim()
  const { stdout } = await command(['gcc', '--version'])
  const compiler = stdout.split('\n')[0] ?? ''
  const origin = { release, source: source.package, compiler, passedOver }
  return writeArtifact({ tree: source.tree, output, origin })
}

/** @param {number} bytes */
function mib(bytes) {
  return `${(bytes / 1024 / 1024).toFixed(1)} MiB`
}
