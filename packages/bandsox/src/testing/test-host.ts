/** A host for tests that start no VM: a storage of its own, no images, and the driver that is given. */
import path from 'node:path'
import type { Configuration } from '../sandbox/configuration.js'
import { readConfiguration } from '../sandbox/configuration.js'
import type { Host } from '../sandbox/host.js'
import { usualLimits } from '../sandbox/limits.js'
import { SandboxStore } from '../store/sandbox-store.js'
import type { Vmm } from '../vmm/vmm.js'
import { noImages } from './no-images.js'
import { type TestScope, temporaryFolder } from './temporary-folder.js'

export interface TestHost extends Host {
  /** What was logged, all levels. */
  readonly logged: string[]
}

export async function testHost(
  t: TestScope,
  { vmm, shimPath, configuration }: { vmm: Vmm; shimPath: string; configuration?: Configuration },
): Promise<TestHost> {
  const logged: string[] = []
  const log = (message: string) => void logged.push(message)
  const store = await SandboxStore.open(path.join(await temporaryFolder(t), 'storage'), log)
  t.after(() => store.close())
  return {
    store,
    images: noImages(path.join(store.root, 'images')),
    vmm,
    vmmChoice: async () => ({ name: 'qemu', reason: 'a test says so' }),
    shimPath,
    defaultLimits: usualLimits,
    configuration: async () => configuration ?? (await readConfiguration(undefined)),
    debug: log,
    info: log,
    warn: log,
    logged,
  }
}
