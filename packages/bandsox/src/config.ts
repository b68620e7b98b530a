/** The environment, read once and typed: where things are on this host. */
import { homedir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export interface Config {
  /** Folder of all state. */
  storage: string
  agentPath: string
  shimPath: string
  /** Folders searched for QEMU and the vsock daemon. */
  searchPath: string[]
}

/** The package's own folder, whether it runs from `dist` or is installed. */
const packageFolder = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')

/** Ordinary users lack them in PATH on Debian. */
const SYSTEM_FOLDERS = ['/usr/bin', '/usr/local/bin', '/usr/sbin', '/usr/libexec']
const VSOCK_DAEMON_FOLDER = 'vhost-device-vsock-0.3.0/bin'

export function readConfig(env: NodeJS.ProcessEnv = process.env, overrides: { storage?: string } = {}): Config {
  const data = env['XDG_DATA_HOME'] ?? path.join(homedir(), '.local/share')
  const cache = env['XDG_CACHE_HOME'] ?? path.join(homedir(), '.cache')
  const usual = process.getuid?.() === 0 ? '/var/lib/bandsox' : path.join(data, 'bandsox')
  return {
    storage: path.resolve(overrides.storage ?? env['BANDSOX_STORAGE'] ?? usual),
    agentPath: path.join(packageFolder, 'native/bandsox-agent'),
    shimPath: path.join(packageFolder, 'native/bandsox-shim'),
    searchPath: [
      ...(env['PATH'] ?? '').split(':').filter((folder) => folder !== ''),
      ...SYSTEM_FOLDERS,
      path.join(cache, 'bandsox', VSOCK_DAEMON_FOLDER),
    ],
  }
}
