/** Obtains the source of the distribution's kernel: its package through apt, which checks signatures, unpacked without root. */
import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { command, tryCommand } from '../scripts/lib/command.mjs'
import { StepError } from '../scripts/lib/step.mjs'

/** Depends on the package of the kernel's series, such as linux-source-6.1. */
export const META_PACKAGE = 'linux-source'

const TREE = 'linux'
const TIME = 'made-at'
const STALE_LISTS_REMEDY = 'the package lists may be missing or old: sudo apt-get update'

/**
 * @typedef {object} SourcePackage
 * @property {string} name
 * @property {string} version
 *
 * @typedef {object} Source
 * @property {SourcePackage} package
 * @property {string} tree Folder of the unpacked source.
 * @property {Date} madeAt When the package was made: what the build takes for the time.
 */

/**
 * Finds the newest package of sources that apt knows.
 *
 * @param {string} name {@link META_PACKAGE}, or a package of one series.
 * @returns {Promise<SourcePackage>}
 * @throws {StepError} When apt does not know it.
 */
export async function findSourcePackage(name) {
  const { code, stdout } = await tryCommand(['apt-cache', 'show', '--no-all-versions', name])
  if (code !== 0) throw new StepError(`apt knows no package ${name}`, { remedy: STALE_LISTS_REMEDY })
  return parseSourcePackage(stdout) ?? findSourcePackage(seriesOf(stdout, name))
}

/**
 * @param {string} text As `apt-cache show` prints it.
 * @returns {SourcePackage | undefined} None for a package that only depends on another.
 */
export function parseSourcePackage(text) {
  const field = (/** @type {string} */ name) => new RegExp(`^${name}: (\\S+)`, 'm').exec(text)?.[1]
  const [name, version] = [field('Package'), field('Version')]
  return name === undefined || version === undefined || name === META_PACKAGE ? undefined : { name, version }
}

/**
 * @param {string} text
 * @param {string} name
 */
function seriesOf(text, name) {
  const series = /^Depends:.*?\b(linux-source-[\w.+-]+)/m.exec(text)?.[1]
  if (series === undefined) throw new StepError(`the package ${name} depends on no linux-source-*: not a kernel's`)
  return series
}

/**
 * Downloads and unpacks a package of sources; what was unpacked before is taken as it is.
 *
 * @param {SourcePackage} wanted
 * @param {string} work
 * @returns {Promise<{ source: Source, changed: boolean }>}
 */
export async function fetchSource(wanted, work) {
  const folder = join(work, `${wanted.name}_${wanted.version.replaceAll(/[^\w.+~-]/g, '-')}`)
  const isThere = existsSync(folder)
  if (!isThere) {
    const unfinished = `${folder}.partial`
    await rm(unfinished, { recursive: true, force: true })
    await mkdir(unfinished, { recursive: true })
    await unpack(wanted, unfinished)
    await rename(unfinished, folder)
  }
  const tree = join(folder, TREE)
  const madeAt = new Date(await readFile(join(folder, TIME), 'utf8'))
  return { source: { package: wanted, tree, madeAt }, changed: !isThere }
}

/**
 * Leaves the source, and the time of the tar that it came in.
 *
 * @param {SourcePackage} wanted
 * @param {string} folder
 */
async function unpack({ name, version }, folder) {
  // As root, apt would hand the download to its user _apt, who cannot write here, and warn about it.
  const download = ['apt-get', '-q', '-o', 'APT::Sandbox::User=root', 'download', `${name}=${version}`]
  const { code, stderr } = await tryCommand(download, { cwd: folder })
  if (code !== 0) {
    throw new StepError(`cannot download ${name} ${version}: ${stderr.trim()}`, { remedy: STALE_LISTS_REMEDY })
  }
  const [deb = ''] = (await readdir(folder)).filter((each) => each.endsWith('.deb'))
  await command(['dpkg-deb', '--extract', join(folder, deb), join(folder, 'package')])
  const files = await readdir(join(folder, 'package/usr/src'), { recursive: true, withFileTypes: true })
  // Ubuntu has it in a folder of its own, and a link to it beside that.
  const tar = files.find((each) => each.isFile() && /^linux-source-.*\.tar\.\w+$/.test(each.name))
  if (tar === undefined) throw new StepError(`${name} ${version} holds no usr/src/linux-source-*.tar.*`)
  const path = join(tar.parentPath, tar.name)
  const { mtime } = await stat(path)
  await mkdir(join(folder, TREE))
  await command(['tar', '-x', '-C', join(folder, TREE), '--strip-components=1', '--no-same-owner', '-f', path])
  await rm(join(folder, 'package'), { recursive: true })
  await rm(join(folder, deb))
  await writeFile(join(folder, TIME), mtime.toISOString())
}
