#!/usr/bin/env node
/** Measures this host's sandboxes: builds what bench/ needs, then runs it. See docs/performance.md. */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { command } from './lib/command.mjs'
import { root } from './lib/paths.mjs'
import { setUp } from './setup.mjs'

const output = join(root, 'bench/dist')

async function build() {
  const failed = await setUp({ install: false, print: (line) => line.startsWith('✓') || console.error(line) })
  if (failed.length > 0) throw new Error(`this host is not set up (${failed.join(', ')}); run: npm run setup`)
  await command([process.execPath, join(root, 'node_modules/typescript/bin/tsc'), '-b', 'bench'], { cwd: root })
  const env = { ...process.env, CGO_ENABLED: '0', GOOS: 'linux', GOARCH: 'amd64' }
  const flags = ['-trimpath', '-buildvcs=false', '-ldflags', '-s -w'] // as the agent is built
  const argv = ['go', 'build', ...flags, '-o', join(output, 'bench-guest'), './cmd/bench-guest']
  await command(argv, { cwd: join(root, 'guest'), env })
}

try {
  await build()
  // Sandboxes are booted, and nothing is made in the background: what starts from templates is measured by itself.
  const env = { ...process.env, BANDSOX_TEMPLATES: 'off' }
  const child = spawn(process.execPath, [join(output, 'main.js'), ...process.argv.slice(2)], { stdio: 'inherit', env })
  process.on('SIGINT', () => undefined) // the child got it too, and cleans up before it ends
  child.once('close', (code) => {
    process.exitCode = code ?? 1
  })
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
}
