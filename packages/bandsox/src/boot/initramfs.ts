/** Builds the initramfs: the agent as PID 1, the kernel's modules in load order, and nothing else. */
import { createHash } from 'node:crypto'
import { open, readFile } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { type CpioEntry, writeCpio } from './cpio.js'
import type { GuestKernel, KernelModule } from './kernel.js'

/** Part of {@link initramfsKey}: raise it when the archive's layout changes. */
const LAYOUT_VERSION = 2

/** Mount points that the agent expects: the image below, the writable layer, and the two laid over each other. */
const directories = ['dev', 'lower', 'modules', 'newroot', 'proc', 'rw', 'sys']

export interface InitramfsOptions {
  kernel: GuestKernel
  /** The agent, a static executable. */
  agentPath: string
  output: string
}

/** What an initramfs is made of: two with the same key have the same bytes. */
export const initramfsKey = (kernel: Pick<GuestKernel, 'sha256'>, agentSha256: string): string =>
  createHash('sha256')
    .update(JSON.stringify([LAYOUT_VERSION, kernel.sha256, agentSha256]))
    .digest('hex')

/**
 * Writes the archive, uncompressed: unpacking it costs the guest more than reading it, by measurement.
 *
 * @throws `host-missing` when there is no agent.
 */
export async function buildInitramfs({
  kernel,
  agentPath,
  output,
}: InitramfsOptions): Promise<{ path: string; sha256: string; sizeBytes: number }> {
  const agent = await readAgent(agentPath)
  const modules = new Map<string, Buffer>()
  for (const { name, path } of kernel.modules) modules.set(name, await readFile(path))
  const hash = createHash('sha256')
  let sizeBytes = 0
  const file = await open(output, 'w')
  try {
    for (const piece of writeCpio(initramfsEntries(agent, kernel.modules, modules))) {
      hash.update(piece)
      sizeBytes += piece.length
      await file.write(piece)
    }
  } finally {
    await file.close()
  }
  return { path: output, sha256: hash.digest('hex'), sizeBytes }
}

function* initramfsEntries(
  agent: Buffer,
  plan: readonly KernelModule[],
  contents: ReadonlyMap<string, Buffer>,
): Generator<CpioEntry> {
  for (const path of directories) yield { kind: 'directory', path, mode: 0o755 }
  // The kernel opens /dev/console for PID 1, and Go's runtime ends at once without /dev/null when that fails.
  yield { kind: 'character-device', path: 'dev/console', mode: 0o600, major: 5, minor: 1 }
  yield { kind: 'character-device', path: 'dev/null', mode: 0o666, major: 1, minor: 3 }
  yield { kind: 'file', path: 'init', mode: 0o755, content: agent }
  for (const stage of ['boot', 'late'] as const) {
    const lines = plan.filter((module) => module.stage === stage).map(({ name }) => `${name}.ko\n`)
    // For a kernel with everything built in a blank line: the agent's read of an empty file is an error, which it would log.
    const content = Buffer.from(lines.join('') || '\n')
    yield { kind: 'file', path: `modules/load.${stage}`, mode: 0o644, content }
  }
  for (const [name, content] of [...contents].sort(([a], [b]) => (a < b ? -1 : 1))) {
    yield { kind: 'file', path: `modules/${name}.ko`, mode: 0o644, content }
  }
}

/**
 * Lower-case hex SHA-256 of the agent.
 *
 * @throws `host-missing` when it is not built.
 */
export async function digestAgent(path: string): Promise<string> {
  return createHash('sha256')
    .update(await readAgent(path))
    .digest('hex')
}

async function readAgent(path: string): Promise<Buffer> {
  try {
    return await readFile(path)
  } catch (error) {
    if (!isSystemError(error, 'ENOENT')) throw error
    throw new BandSoxError('host-missing', `the guest agent ${path} is not built`, {
      cause: error,
      hint: 'build it: npm run setup',
    })
  }
}
