/** The open descriptors of this process, by what they are: a test compares before and after. */
import { readdir, readlink } from 'node:fs/promises'

/** Sockets have no path of their own, so they are counted as `socket:`. */
export async function openDescriptors(): Promise<string[]> {
  const targets: string[] = []
  for (const fd of await readdir('/proc/self/fd')) {
    try {
      targets.push((await readlink(`/proc/self/fd/${fd}`)).replace(/:\[\d+\]$/, ':'))
    } catch {
      // The descriptor of this very listing: it is closed by now.
    }
  }
  return targets.sort()
}
