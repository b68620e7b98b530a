/** Checks what no set-up can change: operating system, processor, Node. */
import { readFileSync } from 'node:fs'
import { StepError } from './step.mjs'
import { isAtLeast } from './version.mjs'

/** 20.12 brought Dirent.parentPath. */
const MIN_NODE = '20.12'

/**
 * @param {{ platform: string, arch: string, node: string, osRelease: string }} [host]
 * @returns {import('./step.mjs').Outcome}
 */
export function checkPlatform(host = thisHost()) {
  if (host.platform !== 'linux' || host.arch !== 'x64') {
    throw new StepError(`BandSox runs on Linux on x86-64, and this is ${host.platform} on ${host.arch}`)
  }
  if (!isAtLeast(host.node, MIN_NODE)) {
    throw new StepError(`Node ${host.node} is too old: ${MIN_NODE} or later is needed`, {
      remedy: 'install Node 20 or later',
    })
  }
  const title = /^PRETTY_NAME="?([^"\n]*)/m.exec(host.osRelease)?.[1] ?? 'unknown distribution'
  return { detail: `${title}, x86-64, Node ${host.node}` }
}

const thisHost = () => ({
  platform: process.platform,
  arch: process.arch,
  node: process.versions.node,
  osRelease: readFileSync('/etc/os-release', 'utf8'),
})
