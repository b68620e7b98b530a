/**
 * Which of the earlier project's VMs really run. Its records do not tell: `running` stays there when a VM dies, and its pid may be
 * another program's by now. Processes do: the Firecrackers of this host, by their arguments, sockets and open files.
 */
import { readdir, readFile, readlink, stat } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'

export interface FirecrackerProcess {
  pid: number
  args: string[]
  /** Names of its Unix sockets; undefined, as `files`, when it is another user's, who may look into it. */
  sockets: string[] | undefined
  /** Device and inode of what it has open. */
  files: ReadonlySet<string> | undefined
}

/** `firecracker`, and as releases name it: `firecracker-v1.12.0-x86_64`. The kernel cuts `comm` at 15 characters. */
const FIRECRACKER = /^firecracker(?:$|-)/

/** Those that can be seen from here: of another container's there is nothing in /proc. */
export async function firecrackerProcesses(): Promise<FirecrackerProcess[]> {
  const found: FirecrackerProcess[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const firecracker = await unlessGone(() => examine(Number(name)))
    if (firecracker !== undefined) found.push(firecracker)
  }
  return found
}

async function examine(pid: number): Promise<FirecrackerProcess | undefined> {
  const folder = `/proc/${pid}`
  const program = (await readFile(`${folder}/comm`, 'utf8')).trim()
  if (!FIRECRACKER.test(program) && !FIRECRACKER.test(await executableOf(folder))) return undefined
  const args = (await readFile(`${folder}/cmdline`, 'utf8')).split('\0').filter((arg) => arg !== '')
  if (args.length === 0) return undefined // a zombie has none
  return { pid, args, ...(await openFiles(folder)) }
}

async function executableOf(folder: string): Promise<string> {
  try {
    return path.basename(await readlink(`${folder}/exe`)).replace(/ \(deleted\)$/, '')
  } catch (error) {
    if (isRefused(error)) return '' // another user's: its name is all that is told
    throw error
  }
}

async function openFiles(folder: string): Promise<Pick<FirecrackerProcess, 'sockets' | 'files'>> {
  try {
    const names = await readdir(`${folder}/fd`)
    const inodes = new Set<string>()
    const files = new Set<string>()
    for (const name of names) {
      const descriptor = await unlessGone(() => stat(`${folder}/fd/${name}`, { bigint: true }))
      if (descriptor?.isSocket()) inodes.add(String(descriptor.ino))
      else if (descriptor?.isFile()) files.add(`${descriptor.dev}:${descriptor.ino}`)
    }
    return { files, sockets: socketNames(await readFile(`${folder}/net/unix`, 'utf8'), inodes) }
  } catch (error) {
    if (isRefused(error)) return { files: undefined, sockets: undefined }
    throw error
  }
}

/** Of the process's own network namespace, which restored VMs had: `address: count protocol flags type state inode path`. */
function socketNames(table: string, inodes: ReadonlySet<string>): string[] {
  return table.split('\n').flatMap((line) => {
    const [, inode = '', name] = /^\S+ \S+ \S+ \S+ \S+ \S+ +(\d+) (.+)$/.exec(line) ?? []
    return name !== undefined && inodes.has(inode) ? [name] : []
  })
}

/**
 * The process that this VM runs in, if it does. A Firecracker that may not be looked into is believed to be that of the record
 * with its pid: to leave a VM alone by mistake costs less than to copy a disk that is written to.
 *
 * @returns Its pid.
 */
export function runsIn(
  processes: readonly FirecrackerProcess[],
  vm: { id: string; pid: number | null; disk: { file: string } | { problem: string } },
): number | undefined {
  const { disk } = vm
  const holder = processes.find(
    ({ pid, args, sockets, files }) =>
      [...args, ...(sockets ?? [])].some((text) => text.includes(vm.id)) ||
      ('file' in disk && files?.has(disk.file)) ||
      (files === undefined && pid === vm.pid),
  )
  return holder?.pid
}

const isRefused = (error: unknown) => isSystemError(error, 'EACCES') || isSystemError(error, 'EPERM')

/** Processes end while they are looked at; where /proc hides those of others (`hidepid`), they are as good as gone. */
async function unlessGone<T>(look: () => Promise<T>): Promise<T | undefined> {
  try {
    return await look()
  } catch (error) {
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ESRCH') || isRefused(error)) return undefined
    throw error
  }
}
