/** Writes a stream of tar entries as a read-only squashfs, without root and without unpacking anything on the host. */
import type { Readable } from 'node:stream'
import { runCommand } from '../process/run.js'

export interface SquashfsOptions {
  /**
   * A tar: every folder as an entry of its own, since sqfstar makes missing ones with the builder's owner; each path once,
   * since of two the first wins.
   */
  entries: Readable
  output: string
  /**
   * Seconds since 1970, for every file. Without it each keeps its own time, and the root folder, which is no entry of the
   * tar, has the time of building (squashfs-tools 4.5 ignores -root-time here).
   */
  fixedTime?: number | undefined
  signal?: AbortSignal | undefined
}

/**
 * Of sqfstar's buffers, whose default is a quarter of the host's memory, and which it fills: measured on an image of 480 MB,
 * 64 MiB instead of 6 GiB take a quarter off its time, and 400 MiB off its memory.
 */
const MEMORY = '64M'

/** @throws `host-missing` without squashfs-tools 4.5, `command-failed` with what sqfstar says. */
export async function writeSquashfs({ entries, output, fixedTime, signal }: SquashfsOptions): Promise<void> {
  const argv = [
    'sqfstar',
    '-quiet',
    '-no-progress',
    ...['-mem', MEMORY],
    // The quickest to unpack in a guest without hardware virtualisation.
    ...['-comp', 'lz4'],
    ...['-mkfs-time', '0'],
    // File handles: without them overlayfs does not know what it has copied up, and a file of two names becomes two when it is changed.
    '-exports',
    ...(fixedTime === undefined ? [] : ['-all-time', String(fixedTime)]),
    // The root folder would otherwise have mode 0777 and belong to the builder. Squashfs-tools 4.5 leaves it the builder's
    // all the same; nobody in a sandbox sees it, since there the root folder is the writable layer's.
    ...['-root-mode', '755', '-root-uid', '0', '-root-gid', '0'],
    output,
  ]
  // sqfstar refuses its own options for times when this is set.
  const { SOURCE_DATE_EPOCH: _, ...env } = process.env
  await runCommand(argv, { input: entries, env, ...(signal === undefined ? {} : { signal }) })
}
