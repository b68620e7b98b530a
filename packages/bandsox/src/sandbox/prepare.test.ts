import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { elfKernel } from '../artifact/elf.fixture.js'
import { loadBoot, type PrepareEvent, prepareHost } from './prepare.js'

const skip =
  spawnSync('sqfstar', ['-version']).error === undefined ? false : 'sqfstar (squashfs-tools 4.5) is not installed'

let folder: string
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bandsox-prepare-'))
  await writeFile(join(folder, 'vmlinux'), elfKernel('6.1.0'))
  await writeFile(join(folder, 'agent'), 'an agent')
})
after(() => rm(folder, { recursive: true }))

async function prepare() {
  const steps: string[] = []
  const report = (event: PrepareEvent) => {
    if (event.kind === 'step') steps.push(`${event.step} ${event.made}`)
  }
  const kernelSource = { kernel: join(folder, 'vmlinux') }
  const options = { storage: join(folder, 'storage'), agentPath: join(folder, 'agent'), kernelSource, report }
  return { prepared: await prepareHost(options), steps }
}

test('a host is prepared once, and the second time there is nothing to do', { skip }, async () => {
  const { prepared, steps } = await prepare()
  assert.deepEqual(steps, ['kernel true', 'image true', 'disk true'])
  assert.deepEqual(await prepare(), { prepared, steps: ['kernel false', 'image false', 'disk false'] })
  assert.deepEqual(await loadBoot(join(folder, 'storage')), prepared.boot)
})
