/** Builds the Go programs: the guest's agent, the shim beside each VM, and what tests and benchmarks put into a guest. */
import { createHash } from 'node:crypto'
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { command, isExecutable } from './command.mjs'

const STAMP = 'sources.sha256'
/** Part of the stamp: static, without paths and times of this host, without symbols (5 MB instead of 8). */
const flags = ['-trimpath', '-buildvcs=false', '-ldflags', '-s -w']

/** @typedef {{ guest: string, native: string }} Folders `guest`: the Go module; `native`: where programs go. */

/**
 * True when the programs are built from the present sources, so that no Go is needed.
 *
 * @param {Folders} folders
 */
export async function areGuestProgramsBuilt({ guest, native }) {
  const stamp = await readFile(join(native, STAMP), 'utf8').catch(() => undefined)
  if (stamp !== (await digestSources(guest))) return false
  const present = await Promise.all((await listPrograms(guest)).map((program) => isExecutable(join(native, program))))
  return present.every(Boolean)
}

/**
 * @param {Folders & { env: NodeJS.ProcessEnv, activity?: (text: string) => void }} options
 * @returns {Promise<import('./step.mjs').Outcome>}
 */
export async function buildGuestPrograms({ guest, native, env, activity = () => undefined }) {
  const programs = await listPrograms(guest)
  const detail = programs.join(', ')
  if (await areGuestProgramsBuilt({ guest, native })) return { detail }
  const digest = await digestSources(guest) // before the build: sources changed during it are built next time
  await mkdir(native, { recursive: true })
  for (const program of programs) {
    activity(`go build ${program}`)
    const unfinished = join(native, `.${program}-${process.pid}`)
    try {
      const goEnv = { ...env, CGO_ENABLED: '0', GOOS: 'linux', GOARCH: 'amd64' }
      await command(['go', 'build', ...flags, '-o', unfinished, `./cmd/${program}`], { cwd: guest, env: goEnv })
      await rename(unfinished, join(native, program))
    } finally {
      await rm(unfinished, { force: true })
    }
  }
  await writeFile(join(native, STAMP), digest)
  return { detail, changed: true }
}

/**
 * Every folder of guest/cmd with a program in it.
 *
 * @param {string} guest
 */
async function listPrograms(guest) {
  const entries = await readdir(join(guest, 'cmd'), { recursive: true })
  return entries
    .filter((path) => /^[^/]+\/main\.go$/.test(path))
    .map((path) => dirname(path))
    .sort()
}

/**
 * Names and contents of all that goes into a build.
 *
 * @param {string} guest
 */
export async function digestSources(guest) {
  const hash = createHash('sha256').update(flags.join(' '))
  const entries = await readdir(guest, { recursive: true, withFileTypes: true })
  const paths = entries
    .filter((entry) => entry.isFile() && !entry.name.endsWith('_test.go') && !entry.name.endsWith('.md'))
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => !path.startsWith(join(guest, 'bin/')))
  for (const path of paths.sort()) {
    const content = await readFile(path)
    hash.update(`${path.slice(guest.length)}\0${content.length}\0`).update(content)
  }
  return hash.digest('hex')
}
