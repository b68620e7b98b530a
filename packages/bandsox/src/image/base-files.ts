/** The files of the built-in image, as tar entries. No I/O. */
import { Readable } from 'node:stream'
import { type Header, pack } from 'tar-stream'

export interface BaseEntry {
  header: Partial<Header> & Pick<Header, 'name'>
  content?: Buffer
}

const EPOCH = new Date(0)
/** Mode by path; all owned by root, and each parent before what is in it. */
const directories: [path: string, mode: number][] = [
  ...['dev', 'etc', 'home', 'mnt', 'opt', 'proc', 'run', 'srv', 'sys', 'usr', 'var'].map((path): [string, number] => [
    path,
    0o755,
  ]),
  ...[
    'usr/bin',
    'usr/lib',
    'usr/local',
    'usr/local/bin',
    'usr/local/lib',
    'usr/local/sbin',
    'usr/sbin',
    'usr/share',
  ].map((path): [string, number] => [path, 0o755]),
  ...['var/cache', 'var/lib', 'var/log', 'var/spool'].map((path): [string, number] => [path, 0o755]),
  ['root', 0o700],
  ['tmp', 0o1777],
  ['var/tmp', 0o1777],
]

/** The folders of old are links into /usr, as in the distributions. */
const links: [path: string, target: string][] = [
  ['bin', 'usr/bin'],
  ['lib', 'usr/lib'],
  ['lib64', 'usr/lib'],
  ['sbin', 'usr/sbin'],
  ['var/run', '../run'],
  ['var/lock', '../run/lock'],
  ['etc/mtab', '../proc/self/mounts'],
]

/** `sandbox` is there to run commands as somebody else than root. */
const files: [path: string, text: string][] = [
  [
    'etc/passwd',
    'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nsandbox:x:1000:1000:sandbox:/home/sandbox:/bin/sh\n' +
      'nobody:x:65534:65534:nobody:/:/bin/false\n',
  ],
  ['etc/group', 'root:x:0:\ndaemon:x:1:\ntty:x:5:\nsandbox:x:1000:\nnogroup:x:65534:\n'],
  ['etc/hosts', '127.0.0.1 localhost\n::1 localhost\n'],
  ['etc/shells', '/bin/sh\n'],
  ['etc/profile', "export PS1='\\u@\\h:\\w\\$ '\numask 022\n"],
  ['etc/os-release', 'ID=bandsox\nNAME="BandSox base"\nPRETTY_NAME="BandSox base"\nVERSION_ID=1\n'],
]

/**
 * @param busybox A static executable.
 * @param applets As `busybox --list-full` prints them: `bin/ls`, `usr/sbin/chroot`, …
 */
export function* baseEntries(busybox: Buffer, applets: readonly string[]): Generator<BaseEntry> {
  for (const [name, mode] of directories) yield { header: owned({ name, mode, type: 'directory' }) }
  yield { header: { ...owned({ name: 'home/sandbox', mode: 0o755, type: 'directory' }), uid: 1000, gid: 1000 } }
  for (const [name, linkname] of links) yield { header: owned({ name, linkname, mode: 0o777, type: 'symlink' }) }
  for (const [name, text] of files)
    yield { header: owned({ name, mode: 0o644, type: 'file' }), content: Buffer.from(text) }
  yield { header: owned({ name: 'usr/bin/busybox', mode: 0o755, type: 'file' }), content: busybox }
  for (const [name, linkname] of appletLinks(applets)) {
    yield { header: owned({ name, linkname, mode: 0o777, type: 'symlink' }) }
  }
}

/** One link per applet in /usr: sqfstar would take the first of two and complain about the second. */
function appletLinks(applets: readonly string[]): Map<string, string> {
  const found = new Map<string, string>()
  for (const applet of applets) {
    const match = /^(?:usr\/)?(s?bin)\/([^/]+)$/.exec(applet)
    // `linuxrc`, in no folder, is for initial RAM disks; `busybox` is the program itself.
    if (match?.[1] === undefined || match[2] === undefined || match[2] === 'busybox') continue
    found.set(`usr/${match[1]}/${match[2]}`, match[1] === 'bin' ? 'busybox' : '../bin/busybox')
  }
  return found
}

const owned = (header: BaseEntry['header']): BaseEntry['header'] => ({ ...header, uid: 0, gid: 0, mtime: EPOCH })

/** Entries as a tar stream. */
export function packEntries(entries: Iterable<BaseEntry>): Readable {
  const stream = pack()
  for (const { header, content } of entries) stream.entry(header, content ?? Buffer.alloc(0))
  stream.finalize()
  return Readable.from(stream) // tar-stream's own stream is not one of Node's
}
