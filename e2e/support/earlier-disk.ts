/** A disk as the earlier project made it: a whole root file system on an ext4, with its own init and agent, and killed in the middle. */
import assert from 'node:assert/strict'
import { chmod, mkdir, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { ImageStore } from 'bandsox/internal/image/image-store.js'
import { runTool } from './test-tools.js'

const BLOCK_BYTES = 4096

/**
 * Writes the disk. `/root/kept` says "kept", and `/root/journaled` says "before" until the journal is replayed, and "after!" then.
 * `/init` and the agent would leave `/ran`.
 *
 * @param storage Whose image `bandsox/base` it is made of.
 */
export async function makeEarlierDisk(disk: string, storage: string, workFolder: string): Promise<void> {
  const images = new ImageStore(path.join(storage, 'images'))
  const reference = await images.readReference('bandsox/base')
  const image = reference === undefined ? undefined : await images.readImage(reference.image)
  const base = image === undefined ? undefined : await images.findDisk(image.disk)
  assert.ok(base !== undefined, 'the storage has no bandsox/base')
  const unpacked = path.join(workFolder, 'unpacked')
  await runTool(['unsquashfs', '-quiet', '-no-progress', '-dest', unpacked, base.path])
  const root = path.join(unpacked, 'rootfs')
  await writeFiles(root)
  await runTool(['mke2fs', '-q', '-F', '-t', 'ext4', '-b', String(BLOCK_BYTES), '-d', root, disk, '128M'])
  await leaveInJournal(disk, '/root/journaled', 'after!\n', workFolder)
}

async function writeFiles(root: string): Promise<void> {
  await writeFile(path.join(root, 'root/kept'), 'kept\n')
  await writeFile(path.join(root, 'root/journaled'), 'before\n')
  await mkdir(path.join(root, 'etc'), { recursive: true })
  await writeFile(path.join(root, 'etc/resolv.conf'), 'nameserver 8.8.8.8\n')
  await mkdir(path.join(root, 'usr/local/bin'), { recursive: true })
  for (const program of ['init', 'usr/local/bin/bandsox-agent']) {
    await writeFile(path.join(root, program), '#!/bin/sh\ntouch /ran\n')
    await chmod(path.join(root, program), 0o755)
  }
}

/** A transaction that was committed, and not yet written to its place: what a kill leaves. */
async function leaveInJournal(disk: string, file: string, content: string, workFolder: string): Promise<void> {
  const block = (await runTool(['debugfs', '-R', `blocks ${file}`, disk])).trim()
  assert.match(block, /^\d+$/)
  const newBlock = path.join(workFolder, 'block')
  await writeFile(newBlock, content)
  await truncate(newBlock, BLOCK_BYTES)
  const script = path.join(workFolder, 'script')
  await writeFile(script, `journal_open\njournal_write -b ${block} ${newBlock}\njournal_close\n`)
  await runTool(['debugfs', '-w', '-f', script, disk])
  assert.match(await runTool(['dumpe2fs', '-h', disk]), /needs_recovery/)
}
