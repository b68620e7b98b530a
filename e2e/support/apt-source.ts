/** Where this host's apt gets the distribution from, so that an image of it comes from the same place. */
import { readFile } from 'node:fs/promises'
import { runTool } from './test-tools.js'

export interface AptSource {
  /** `bookworm`, say. */
  suite: string
  /** In the form of sources.list(5). */
  lines: string[]
  /** Options that the host's apt needs to reach it: proxies, and tolerance of old mirrors. */
  options: string[]
}

/** Options of apt.conf(5) that belong to the way to the mirror. */
const NETWORK_OPTION = /^Acquire::(https?::|Check-|Retries|ForceIPv)[^"]* ".+";$/

/** @throws When apt knows no mirror of this host's distribution. */
export async function hostAptSource(): Promise<AptSource> {
  const suite = /^VERSION_CODENAME=(.*)$/m.exec(await readFile('/etc/os-release', 'utf8'))?.[1]
  if (suite === undefined) throw new Error('cannot tell which release this host has: no VERSION_CODENAME')
  let lines = await mainSources(suite)
  if (lines.length === 0) {
    await runTool(['apt-get', '-q', 'update']) // a fresh container has no package lists
    lines = await mainSources(suite)
  }
  if (lines.length === 0) throw new Error(`apt has no sources of ${suite}: see apt-get indextargets`)
  const options = (await runTool(['apt-config', 'dump'])).split('\n').filter((line) => NETWORK_OPTION.test(line))
  return { suite, lines, options }
}

async function mainSources(suite: string): Promise<string[]> {
  const format = 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)'
  const wanted = ['Created-By: Packages', `Release: ${suite}`, 'Component: main']
  const printed = await runTool(['apt-get', 'indextargets', '--format', format, ...wanted])
  return [...new Set(printed.split('\n').filter((line) => line !== ''))]
}
