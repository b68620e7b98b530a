/** Unpacks the modules that the guest needs from those that a kernel comes with. */
import { copyFile, mkdir, readdir, readFile, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import * as z from 'zod'
import { readModuleInfo } from '../artifact/elf.js'
import { recordedFileSchema, recordFile } from '../artifact/recorded-file.js'
import { decompressFile, detectCompression } from './decompress.js'
import { bootModules, lateModules, moduleName, parseBuiltin, planModules } from './modules.js'

const MODULE_FILE = /\.ko(\.(xz|zst|gz))?$/

export const kernelModuleSchema = recordedFileSchema.extend({
  name: z.string(),
  /** `boot`: before the root file system; `late`: when the guest already answers. */
  stage: z.enum(['boot', 'late']),
})

export interface UnpackedModules {
  /** In load order. */
  modules: z.infer<typeof kernelModuleSchema>[]
  builtin: string[]
  absent: string[]
}

/**
 * Puts the wanted modules with all that they need, decompressed (the guest has no tool for it), into `directory`/modules.
 *
 * @param roots Folders to look in, with everything below them.
 */
export async function unpackModules({
  roots,
  release,
  directory,
  signal,
}: {
  roots: readonly string[]
  release: string
  directory: string
  signal?: AbortSignal | undefined
}): Promise<UnpackedModules> {
  await mkdir(join(directory, 'modules'))
  const { available, builtin } = await findModules(roots, release)
  const unpacked = new Map<string, string>()
  const dependenciesOf = async (name: string): Promise<string[] | undefined> => {
    const packed = available.get(name)
    if (packed === undefined) return undefined
    const file = join('modules', `${name}.ko`)
    const content = await unpackModule(packed, join(directory, file), signal)
    unpacked.set(name, file)
    const depends = readModuleInfo(content).get('depends')?.[0] ?? ''
    return depends
      .split(',')
      .filter((each) => each !== '')
      .map(moduleName)
  }
  const plan = await planModules({ boot: bootModules, late: lateModules, builtin, dependenciesOf })
  const record = async (name: string, stage: 'boot' | 'late') => ({
    name,
    stage,
    ...(await recordFile(directory, join('modules', `${name}.ko`))),
  })
  const modules: UnpackedModules['modules'] = []
  for (const name of plan.boot) modules.push(await record(name, 'boot'))
  for (const name of plan.late) modules.push(await record(name, 'late'))
  // Looked at for their dependencies, and then not loadable because one of those is absent.
  for (const [name, file] of unpacked)
    if (!modules.some((module) => module.name === name)) await rm(join(directory, file))
  return { modules, builtin: plan.builtin, absent: plan.absent }
}

async function unpackModule(packed: string, target: string, signal?: AbortSignal): Promise<Buffer> {
  const staged = `${target}.packed`
  await copyFile(packed, staged)
  await decompressFile({
    input: staged,
    output: target,
    compression: detectCompression(await readFile(staged)),
    signal,
  })
  await rm(staged, { force: true })
  return readFile(target)
}

/** Where a folder holds the modules of several kernels (/lib/modules/RELEASE), only those of `release` count. */
async function findModules(roots: readonly string[], release: string) {
  const files: string[] = []
  for (const root of roots) {
    for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
      if (entry.isFile()) files.push(join(entry.parentPath, entry.name))
    }
  }
  const ofRelease = files.filter((path) => path.includes(`/${release}/`))
  const candidates = ofRelease.length > 0 ? ofRelease : files
  const available = new Map(
    candidates.filter((path) => MODULE_FILE.test(path)).map((path) => [moduleName(basename(path)), path]),
  )
  const lists = candidates.filter((path) => basename(path) === 'modules.builtin')
  const builtin = parseBuiltin((await Promise.all(lists.map((path) => readFile(path, 'utf8')))).join('\n'))
  return { available, builtin }
}
