/** A folder of a test's own, gone when the test has ended. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'

export interface TestScope {
  after(release: () => Promise<void> | void): void
}

export async function temporaryFolder(t: TestScope): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'bandsox-test-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  return folder
}
