/** Storages of the earlier project, made up: as it left them, and as nobody should. */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { copyFile, lstat, mkdir, open, readdir, readFile, readlink, truncate, writeFile } from 'node:fs/promises'
import type { Server } from 'node:net'
import path from 'node:path'
import { type TestScope, temporaryFolder } from './temporary-folder.js'

/** Those of the vsock report. */
export const DEAD_ID = 'f368bbe3-50b1-4e29-b2ad-c18768818398'
export const RUNNING_ID = 'a70b3840-1c2d-4e5f-8a9b-0c1d2e3f4a5b'
export const OTHER_ID = 'e3039fdb-50b1-4e29-b2ad-c18768818398'
/** Of no process: above what the kernel gives. */
export const DEAD_PID = 2 ** 22 + 1

/** A record as version 3 wrote it. */
export const earlierRecord = (id: string, over: object = {}): { id: string } & Record<string, unknown> => ({
  id,
  name: 'test-vsock-vm',
  image: 'alpine:latest',
  vcpu: 1,
  mem_mib: 128,
  disk_size_mib: 64,
  rootfs_path: `/var/lib/sandbox/images/${id}.ext4`,
  network_config: { host_ip: '172.16.5.1', guest_ip: '172.16.5.2' },
  vsock_config: { enabled: true, cid: 4, port: 9001, uds_path: `/tmp/bandsox/vsock_${id}.sock` },
  created_at: 1_767_960_000.5,
  status: 'running',
  pid: DEAD_PID,
  agent_ready: true,
  env_vars: {},
  metadata: {},
  restored_from: null,
  mcp: null,
  ...over,
})

export interface EarlierStorageParts {
  records?: ({ id: string } & Record<string, unknown>)[]
  /** Files of `metadata` that are no records. */
  files?: Record<string, string>
  /** Ids of those without a disk. */
  diskless?: string[]
  cids?: unknown
  ports?: unknown
}

export async function earlierStorage(
  t: TestScope,
  { records = [], files = {}, diskless = [], cids, ports }: EarlierStorageParts = {},
): Promise<string> {
  const folder = path.join(await temporaryFolder(t), 'earlier')
  for (const name of ['metadata', 'images', 'sockets', 'logs', 'snapshots'])
    await mkdir(path.join(folder, name), { recursive: true })
  for (const record of records) {
    await writeFile(path.join(folder, 'metadata', `${record.id}.json`), JSON.stringify(record))
    if (!diskless.includes(record.id)) await writeDisk(folder, `${record.id}.ext4`)
  }
  for (const [name, content] of Object.entries(files)) await writeFile(path.join(folder, 'metadata', name), content)
  if (cids !== undefined) await writeFile(path.join(folder, 'cid_allocator.json'), JSON.stringify(cids))
  if (ports !== undefined) await writeFile(path.join(folder, 'port_allocator.json'), JSON.stringify(ports))
  return folder
}

/** Sparse, and ext4 as far as its magic goes. */
export async function writeDisk(folder: string, name: string, content = `the disk ${name}`): Promise<string> {
  const file = path.join(folder, 'images', name)
  await writeFile(file, content)
  await truncate(file, 8 * 1024 * 1024)
  const handle = await open(file, 'r+')
  try {
    await handle.write(Buffer.from([0x53, 0xef]), 0, 2, 0x438)
  } finally {
    await handle.close()
  }
  return file
}

/** Of all that a tree is: names, contents, modes, owners, and when anything of it was last changed. */
export async function treeDigest(folder: string): Promise<string> {
  const hash = createHash('sha256')
  for (const name of ['', ...(await readdir(folder, { recursive: true }))].sort()) {
    const file = path.join(folder, name)
    const stats = await lstat(file, { bigint: true })
    const { mode, uid, gid, ino, size, blocks, mtimeNs, ctimeNs } = stats
    hash.update([name, mode, uid, gid, ino, size, blocks, mtimeNs, ctimeNs].join('\0'))
    if (stats.isFile()) hash.update(await readFile(file))
    if (stats.isSymbolicLink()) hash.update(await readlink(file))
  }
  return hash.digest('hex')
}

export interface RunningOptions {
  /** Arguments, as of `firecracker --api-sock …`. */
  args?: string[]
  /** Of the program. */
  name?: string
  /** Disk that it has open. */
  disk?: string
  /** Socket that it has. */
  server?: Server
}

/** A process that is called Firecracker and waits: a shell under that name. */
export async function runningFirecracker(
  t: TestScope,
  { args = [], name = 'firecracker', disk, server }: RunningOptions = {},
): Promise<{ pid: number; end: () => Promise<void> }> {
  const program = path.join(await temporaryFolder(t), name)
  await copyFile('/bin/sh', program)
  const script = `${disk === undefined ? '' : 'exec 4<"$0"; '}echo up; read line`
  const child = spawn(program, ['-c', script, disk ?? 'sh', ...args], {
    stdio: ['pipe', 'pipe', 'ignore', server === undefined ? 'ignore' : descriptorOf(server)],
  })
  t.after(() => void child.kill('SIGKILL'))
  const { pid, stdout } = child
  if (pid === undefined || stdout === null) throw new Error(`cannot start ${program}`)
  await once(stdout, 'data')
  const end = async () => {
    const closed = once(child, 'close')
    child.kill('SIGKILL')
    await closed
  }
  return { pid, end }
}

/** Node passes streams on, and of a server only the descriptor. */
function descriptorOf(server: Server): number {
  const { _handle: handle } = server as unknown as { _handle: { fd: number } | null }
  if (handle === null) throw new Error('it does not listen')
  return handle.fd
}
