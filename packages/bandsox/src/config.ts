/** The environment, read once and typed: where things are on this host. */
import { homedir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { BandSoxError } from '@bandsox/sdk'
import type { JailerMode } from './vmm/firecracker/host.js'
import type { VmmName } from './vmm/host-vmm.js'

export interface Config {
  /** Folder of all state. */
  storage: string
  agentPath: string
  shimPath: string
  /** Folders searched for QEMU and the vsock daemon. */
  searchPath: string[]
  /** Where a user says that Firecracker and its jailer are. */
  firecracker: { program?: string; jailer?: string }
  /** Our own command line. */
  cliPath: string
  /** Whether new sandboxes start from templates; undefined: as the configuration says. */
  templates: boolean | undefined
  /** As they are written: the option, else the variable. */
  vmm?: VmmName
  jailer?: JailerMode
  /** Of the user: registries, limits. */
  configFile: string
  /** Where credentials for registries are looked for, in this order; ours, which `login` writes, is the first. */
  authFiles: [string, ...string[]]
  /** URLs of proxies, and hosts without one. */
  proxy: { http?: string | undefined; https?: string | undefined; none?: string | undefined }
  /** Of new sandboxes that name none. */
  defaultLimits: { diskBytesPerSecond?: number | null; diskOperationsPerSecond?: number | null }
  /** As it was written: the command line checks it. */
  logLevel: string | undefined
  environment: NodeJS.ProcessEnv
}

/** The package's own folder, whether it runs from `dist` or is installed. */
const packageFolder = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')

/** Ordinary users lack them in PATH on Debian. */
const SYSTEM_FOLDERS = ['/usr/bin', '/usr/local/bin', '/usr/sbin', '/usr/libexec']
const VSOCK_DAEMON_FOLDER = 'vhost-device-vsock-0.3.0/bin'

export function readConfig(
  env: NodeJS.ProcessEnv = process.env,
  overrides: { storage?: string; configFile?: string; vmm?: VmmName; jailer?: JailerMode } = {},
): Config {
  const data = env['XDG_DATA_HOME'] ?? path.join(homedir(), '.local/share')
  const cache = env['XDG_CACHE_HOME'] ?? path.join(homedir(), '.cache')
  const configuration = env['XDG_CONFIG_HOME'] ?? path.join(homedir(), '.config')
  const usual = process.getuid?.() === 0 ? '/var/lib/bandsox' : path.join(data, 'bandsox')
  return {
    storage: path.resolve(overrides.storage ?? env['BANDSOX_STORAGE'] ?? usual),
    agentPath: path.join(packageFolder, 'native/bandsox-agent'),
    shimPath: path.join(packageFolder, 'native/bandsox-shim'),
    cliPath: path.join(packageFolder, 'dist/cli/main.js'),
    templates: switchFrom(env, 'BANDSOX_TEMPLATES'),
    searchPath: [
      ...(env['PATH'] ?? '').split(':').filter((folder) => folder !== ''),
      ...SYSTEM_FOLDERS,
      path.join(cache, 'bandsox', VSOCK_DAEMON_FOLDER),
    ],
    firecracker: {
      ...programFrom(env, 'BANDSOX_FIRECRACKER', 'program'),
      ...programFrom(env, 'BANDSOX_JAILER', 'jailer'),
    },
    ...choiceFrom<'vmm', VmmName>(env, 'BANDSOX_VMM', 'vmm', ['auto', 'firecracker', 'qemu'], overrides.vmm),
    ...choiceFrom<'jailer', JailerMode>(env, 'BANDSOX_JAIL', 'jailer', ['auto', 'on', 'off'], overrides.jailer),
    configFile: path.resolve(
      overrides.configFile ?? env['BANDSOX_CONFIG'] ?? path.join(configuration, 'bandsox/config.json'),
    ),
    authFiles: [
      path.join(configuration, 'bandsox/auth.json'),
      path.join(env['DOCKER_CONFIG'] ?? path.join(homedir(), '.docker'), 'config.json'),
      ...(env['XDG_RUNTIME_DIR'] === undefined ? [] : [path.join(env['XDG_RUNTIME_DIR'], 'containers/auth.json')]),
      path.join(configuration, 'containers/auth.json'),
    ],
    proxy: {
      http: env['http_proxy'] ?? env['HTTP_PROXY'],
      https: env['https_proxy'] ?? env['HTTPS_PROXY'],
      none: env['no_proxy'] ?? env['NO_PROXY'],
    },
    defaultLimits: {
      ...rateFrom(env, 'BANDSOX_DISK_BANDWIDTH_MBPS', 'diskBytesPerSecond', MIB),
      ...rateFrom(env, 'BANDSOX_DISK_IOPS', 'diskOperationsPerSecond', 1),
    },
    logLevel: env['BANDSOX_LOG_LEVEL'],
    environment: env,
  }
}

/** @throws `bad-request`. */
function switchFrom(env: NodeJS.ProcessEnv, variable: string): boolean | undefined {
  const text = env[variable]
  if (text === undefined || text === '') return undefined
  if (text === 'on' || text === 'off') return text === 'on'
  throw new BandSoxError('bad-request', `${variable}: ${JSON.stringify(text)} is none of on, off`)
}

function programFrom<K extends string>(env: NodeJS.ProcessEnv, variable: string, key: K): { [key in K]?: string } {
  const file = env[variable]
  return file === undefined || file === '' ? {} : ({ [key]: path.resolve(file) } as { [key in K]?: string })
}

/** @throws `bad-request` naming what may be chosen. */
function choiceFrom<K extends string, T extends string>(
  env: NodeJS.ProcessEnv,
  variable: string,
  key: K,
  choices: readonly T[],
  given: T | undefined,
): { [key in K]?: T } {
  const text = given ?? env[variable]
  if (text === undefined || text === '') return {}
  if (!(choices as readonly string[]).includes(text))
    throw new BandSoxError(
      'bad-request',
      `${given === undefined ? variable : key}: ${JSON.stringify(text)} is none of ${choices.join(', ')}`,
    )
  return { [key]: text } as { [key in K]?: T }
}

const MIB = 1024 * 1024

/** The earlier project's variables; 0 is no limit. @throws `bad-request`. */
function rateFrom<K extends string>(
  env: NodeJS.ProcessEnv,
  variable: string,
  key: K,
  unit: number,
): { [key in K]?: number | null } {
  const text = env[variable]
  if (text === undefined || text === '') return {}
  if (!/^\d{1,9}$/.test(text))
    throw new BandSoxError('bad-request', `${variable}: ${JSON.stringify(text)} is not a whole number`)
  return { [key]: text === '0' ? null : Number(text) * unit } as { [key in K]?: number | null }
}

/** What fetching an image needs of the configuration. */
export const imageSettings = ({ configFile, authFiles, environment, proxy }: Config) => ({
  configFile,
  credentialSources: { files: authFiles, environment },
  proxy,
})
