/** The smallest image: one static program and nothing else, run by a user who has no name. */
import { chmod, copyFile } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import type { ImageRecipe } from './image-recipe.js'
import { addLayer, configureImage, umociUnpack } from './umoci.js'

/** Prints `uid=`, `gid=`, `groups=`, `cwd=`, `greeting=` and `args=`, a line each. */
const program = fileURLToPath(new URL('../../../packages/bandsox/native/print-process', import.meta.url))

export const scratchImage: ImageRecipe = {
  name: 'scratch',
  version: 1,
  ingredients: [program],
  async make(image, workFolder) {
    const bundle = path.join(workFolder, 'bundle')
    const rootfs = await umociUnpack(image, bundle)
    await copyFile(program, path.join(rootfs, 'print-process'))
    await chmod(path.join(rootfs, 'print-process'), 0o755)
    await addLayer(image, bundle, 'one program')
    await configureImage(image, {
      user: '1234:5678',
      env: { GREETING: 'hello from nothing' },
      entrypoint: ['/print-process', 'first argument', '--second'],
    })
  },
}
