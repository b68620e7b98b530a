/** What this process may do as root: in a container, root often may not do all. */
import { readFileSync } from 'node:fs'

/** Bits of capabilities(7). */
const BITS = {
  CHOWN: 0,
  SETGID: 6,
  SETUID: 7,
  SYS_CHROOT: 18,
  SYS_ADMIN: 21,
  MKNOD: 27,
} as const

export type Privilege = keyof typeof BITS

/** @returns Those of `wanted` that this process lacks. @param status Of the process, as proc(5) shows it. */
export function missingPrivileges(
  wanted: readonly Privilege[],
  status = readFileSync('/proc/self/status', 'latin1'),
): Privilege[] {
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`)
  return wanted.filter((name) => ((effective >> BigInt(BITS[name])) & 1n) === 0n)
}
