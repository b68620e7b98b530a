/** Lays a built kernel out as an artifact: its files, and a manifest that says what they are and were made from. */
import { createHash } from 'node:crypto'
import { copyFile, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { command } from '../scripts/lib/command.mjs'

export const MANIFEST = 'manifest.json'

/** Names in the artifact, and where the kernel's build leaves them. */
const built = {
  bzImage: 'arch/x86/boot/bzImage',
  config: '.config',
  // The kernel's own list of what could have been a module: it tells BandSox that nothing is missing.
  'modules.builtin': 'modules.builtin',
}

/**
 * @typedef {object} Origin
 * @property {string} release What `uname -r` prints.
 * @property {import('./source.mjs').SourcePackage} source
 * @property {string} compiler
 * @property {string[]} passedOver Options of version-dependent.config that this kernel does not know.
 *
 * @typedef {{ sizeBytes: number, sha256: string }} FileRecord
 */

/**
 * @param {Origin} origin
 * @param {ReadonlyMap<string, Buffer>} files
 */
export function describeArtifact({ release, source, compiler, passedOver }, files) {
  /** @type {Record<string, FileRecord>} */
  const records = {}
  for (const [name, content] of files) {
    records[name] = { sizeBytes: content.length, sha256: createHash('sha256').update(content).digest('hex') }
  }
  return { version: 1, release, source, compiler, passedOver, files: records }
}

/**
 * Writes the files, each whole or not at all, and the manifest last: where it is, it is true.
 *
 * @param {{ tree: string, output: string, origin: Origin }} options
 * @returns {Promise<ReturnType<typeof describeArtifact>>}
 */
export async function writeArtifact({ tree, output, origin }) {
  await mkdir(output, { recursive: true })
  await rm(join(output, MANIFEST), { force: true })
  const unfinished = join(output, '.unfinished')
  /** @type {Map<string, Buffer>} */
  const files = new Map()
  const publish = async (/** @type {string} */ name) => {
    files.set(name, await readFile(unfinished))
    await rename(unfinished, join(output, name))
  }
  // Its symbols are a fifth of it, and each boot would read them. The PVH note stays.
  await command(['strip', '-o', unfinished, join(tree, 'vmlinux')])
  await publish('vmlinux')
  for (const [name, path] of Object.entries(built)) {
    await copyFile(join(tree, path), unfinished)
    await publish(name)
  }
  const manifest = describeArtifact(origin, files)
  await writeFile(unfinished, `${JSON.stringify(manifest, undefined, 2)}\n`)
  await rename(unfinished, join(output, MANIFEST))
  return manifest
}
