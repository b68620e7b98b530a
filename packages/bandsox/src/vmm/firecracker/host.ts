/** Where this host has Firecracker and its jailer, and what they are good for. */
import { existsSync, statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { BandSoxError } from '@bandsox/sdk'
import { isStatic } from '../../artifact/elf.js'
import { missingPrivileges, type Privilege } from '../../process/privileges.js'
import { runCommand } from '../../process/run.js'
import { findProgram, type HostTools, requireLinuxX64 } from '../host.js'
import { findInstalledFirecracker } from './installed.js'
import { requireRecentFirecracker, type Version } from './version.js'

const VERSION_TIMEOUT_MS = 10_000

export interface FoundFirecracker {
  program: string
  version: string
  number: Version
  /** undefined where there is none. */
  jailer: string | undefined
}

/** For its mounts, devices, root and user. */
const JAIL_NEEDS = ['SYS_ADMIN', 'MKNOD', 'SYS_CHROOT', 'SETUID', 'SETGID', 'CHOWN'] as const

/** `auto`: where it can be; `on`: or else there is no machine. */
export type JailerMode = 'auto' | 'on' | 'off'

/**
 * {@link findFirecracker}, which is run anew only when another program is in its place: an upgrade counts for the next machine, also of a
 * process that lives long.
 */
export function firecrackerFinder(tools: HostTools): () => Promise<FoundFirecracker> {
  let known: { file: string; found: FoundFirecracker } | undefined
  return async () => {
    const { program, jailer } = await programsOf(tools)
    const status = program === undefined ? undefined : statSync(program, { throwIfNoEntry: false })
    const file = `${program} ${jailer} ${status?.dev} ${status?.ino} ${status?.mtimeMs} ${status?.size}`
    if (known?.file !== file) known = { file, found: await findFirecracker(tools) }
    return known.found
  }
}

/** @throws `host-missing` without one, `host-unsupported` for one that is too old, or another host than Linux on x86-64. */
export async function findFirecracker(tools: HostTools): Promise<FoundFirecracker> {
  requireLinuxX64()
  const { program, jailer } = await programsOf(tools)
  if (program === undefined) {
    throw new BandSoxError('host-missing', 'firecracker is not installed', {
      hint: 'fetch it: bandsox init; or say where it is: BANDSOX_FIRECRACKER=/path/to/firecracker',
    })
  }
  if (!existsSync(program)) {
    throw new BandSoxError('host-missing', `there is no firecracker at ${program}`, {
      hint: 'BANDSOX_FIRECRACKER is to name one; without it, the one that bandsox init has fetched is used',
    })
  }
  const { stdout } = await runCommand([program, '--version'], { timeoutMs: VERSION_TIMEOUT_MS })
  return { program, ...requireRecentFirecracker(stdout), jailer }
}

/** Where a user says, else as `init` has placed them, else where this host has them: both from the same place, if they are there. */
async function programsOf({
  searchPath,
  firecracker: { program, jailer, storage } = {},
}: HostTools): Promise<{ program: string | undefined; jailer: string | undefined }> {
  const installed = program !== undefined || storage === undefined ? undefined : await findInstalledFirecracker(storage)
  return {
    program: program ?? installed?.firecracker ?? (await findProgram('firecracker', searchPath)),
    jailer: jailer ?? (installed === undefined ? await findProgram('jailer', searchPath) : installed.jailer),
  }
}

export type Jail =
  /** The program that puts a machine into a jail. */
  { jailer: string; reason?: undefined } | { jailer: undefined; reason: string }

/** Whether a machine is put into a jail, and why not. @throws `host-unsupported` when it must be and cannot. */
export async function chooseJail(
  mode: JailerMode,
  found: FoundFirecracker,
  isRoot: boolean,
  missing: readonly Privilege[] = missingPrivileges(JAIL_NEEDS),
): Promise<Jail> {
  if (mode === 'off') return { jailer: undefined, reason: 'the jailer is off' }
  const obstacle = await obstacleToJail(found, isRoot, missing)
  if (obstacle === undefined && found.jailer !== undefined) return { jailer: found.jailer }
  const { reason, hint } = obstacle ?? noJailer
  if (mode === 'auto') return { jailer: undefined, reason }
  throw new BandSoxError('host-unsupported', `cannot put a machine into a jail: ${reason}`, { hint })
}

const noJailer = {
  reason: 'there is no jailer',
  hint: 'fetch it: bandsox init; or say where it is: BANDSOX_JAILER=/path/to/jailer',
}

async function obstacleToJail(
  found: FoundFirecracker,
  isRoot: boolean,
  missing: readonly Privilege[],
): Promise<{ reason: string; hint: string } | undefined> {
  const { program, jailer } = found
  if (!isRoot) return { reason: 'only root can make a jail', hint: 'run bandsox as root, or with --jailer auto' }
  if (missing.length > 0) {
    const names = missing.map((name) => `CAP_${name}`).join(', ')
    return { reason: `this root lacks ${names}`, hint: 'give them to the container that bandsox runs in' }
  }
  if (jailer === undefined) return noJailer
  if (!(await isKnownStatic(found))) {
    return {
      reason: `${program} needs libraries, and a jail has none`,
      hint: 'use a statically linked firecracker, as the project’s releases are',
    }
  }
  return undefined
}

/** Found out once for each that {@link firecrackerFinder} has found. */
const areStatic = new WeakMap<FoundFirecracker, Promise<boolean>>()

function isKnownStatic(found: FoundFirecracker): Promise<boolean> {
  const known = areStatic.get(found) ?? isStaticProgram(found.program)
  areStatic.set(found, known)
  return known
}

async function isStaticProgram(program: string): Promise<boolean> {
  const file = await open(program)
  try {
    return await isStatic(file)
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'artifact-damaged') return false // a script, say
    throw error
  } finally {
    await file.close()
  }
}
