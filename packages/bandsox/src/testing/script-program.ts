/** A program of a test's own, in a folder of its own: a shell script by the name that is looked for. */
import { chmod, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { type TestScope, temporaryFolder } from './temporary-folder.js'

export async function scriptProgram(t: TestScope, name: string, script: string): Promise<string> {
  const file = path.join(await temporaryFolder(t), name)
  await writeFile(file, `#!/bin/sh\n${script}\n`)
  await chmod(file, 0o755)
  return file
}
