/** Debian's docker-registry, started for one test: a real registry on a free port of this host, with nothing in it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { rmSync } from 'node:fs'
import { mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { runTool } from './test-tools.js'

const START_TIMEOUT_MS = 10_000

/** Rounds of bcrypt as a power of two: few, since the registry hashes at every request. */
const BCRYPT_COST = '05'

export interface RegistryCredentials {
  user: string
  password: string
}

export interface TestRegistry extends AsyncDisposable {
  /** `127.0.0.1:<port>`, plain HTTP: how a reference to an image in it begins. */
  readonly address: string
  /** What a client must know, where the registry asks for it. */
  readonly credentials?: RegistryCredentials
}

/**
 * Starts a registry and waits until it answers. It ends when it is disposed of, and with this process whatever happens.
 *
 * @param options `credentials`: without them the registry serves anybody.
 */
export async function startRegistry(options: { credentials?: RegistryCredentials } = {}): Promise<TestRegistry> {
  const { credentials } = options
  const folder = await mkdtemp(path.join(tmpdir(), 'bandsox-registry-'))
  let child: ChildProcess | undefined
  const removeAll = () => {
    child?.kill('SIGKILL')
    rmSync(folder, { recursive: true, force: true, maxRetries: 10 })
  }
  process.once('exit', removeAll)
  const dispose = async () => {
    if (child !== undefined) await end(child)
    removeAll()
    process.off('exit', removeAll)
  }
  try {
    await writeFile(path.join(folder, 'config.json'), JSON.stringify(await configuration(folder, credentials)))
    // setpriv: a test process that is killed takes its registry with it.
    const argv = ['--pdeathsig', 'KILL', 'docker-registry', 'serve', path.join(folder, 'config.json')]
    child = spawn('setpriv', argv, { cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] })
    const address = await listeningAddress(child)
    await waitUntilAnswers(address, credentials)
    return { address, ...(credentials === undefined ? {} : { credentials }), [Symbol.asyncDispose]: dispose }
  } catch (error) {
    await dispose()
    throw error
  }
}

/** JSON is YAML, which the registry reads. */
async function configuration(folder: string, credentials: RegistryCredentials | undefined): Promise<object> {
  const config = {
    version: 0.1,
    log: { level: 'info', formatter: 'json' },
    storage: { filesystem: { rootdirectory: path.join(folder, 'storage') }, delete: { enabled: true } },
    http: { addr: '127.0.0.1:0', secret: 'of one registry, so it is no secret' },
  }
  if (credentials === undefined) return config
  const users = path.join(folder, 'htpasswd')
  await writeFile(users, `${credentials.user}:${await bcrypt(credentials.password)}\n`)
  return { ...config, auth: { htpasswd: { realm: 'test registry', path: users } } }
}

/** crypt(3) knows bcrypt, and Perl, which every Debian has, knows crypt(3). */
const bcrypt = async (password: string): Promise<string> =>
  runTool(['perl', '-e', `print crypt($ARGV[0], '$2y$${BCRYPT_COST}$saltOfTwentyTwoBytes.u')`, password])

/** The registry chooses a free port and says which in its log. */
async function listeningAddress(child: ChildProcess): Promise<string> {
  if (child.stderr === null) throw new Error('the registry was started without a pipe for its log')
  const said: string[] = []
  const lines = createInterface({ input: child.stderr })
  const timeout = setTimeout(() => lines.close(), START_TIMEOUT_MS)
  try {
    const failed = new Promise<never>((_, reject) => child.once('error', reject))
    const found = (async () => {
      for await (const line of lines) {
        said.push(line)
        const address = /listening on ([^\s"\\]+)/.exec(line)?.[1]
        if (address !== undefined) return address
      }
      throw new Error(`the registry did not begin to listen within ${START_TIMEOUT_MS} ms:\n${said.join('\n')}`)
    })()
    return await Promise.race([found, failed])
  } finally {
    clearTimeout(timeout)
    child.stderr.resume() // what it logs from now on is nobody's concern, but it must not block
  }
}

async function waitUntilAnswers(address: string, credentials: RegistryCredentials | undefined): Promise<void> {
  const { status } = await fetch(`http://${address}/v2/`, { signal: AbortSignal.timeout(START_TIMEOUT_MS) })
  const expected = credentials === undefined ? 200 : 401
  if (status !== expected) throw new Error(`the registry answers with ${status}, not ${expected}`)
}

async function end(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise((resolve) => child.once('exit', resolve))
  child.kill('SIGKILL')
  await ended
}
