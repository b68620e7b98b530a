/** A small image: one layer with Debian's static BusyBox under all its names, which are hard links. */
import { chmod, copyFile, link, mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { downloadPackages, unpackPackage } from 'bandsox/internal/artifact/apt.js'
import type { ImageRecipe } from './image-recipe.js'
import { runTool } from './test-tools.js'
import { addLayer, configureImage, umociUnpack } from './umoci.js'

export const busyboxImage: ImageRecipe = {
  name: 'busybox',
  version: 1,
  ingredients: [],
  async make(image, workFolder) {
    const bundle = path.join(workFolder, 'bundle')
    const rootfs = await umociUnpack(image, bundle)
    await installBusybox(rootfs, workFolder)
    for (const name of ['dev', 'proc', 'sys', 'root', 'etc']) await mkdir(path.join(rootfs, name), { recursive: true })
    await mkdir(path.join(rootfs, 'tmp'))
    await chmod(path.join(rootfs, 'tmp'), 0o1777)
    await writeFile(path.join(rootfs, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\n')
    await writeFile(path.join(rootfs, 'etc/group'), 'root:x:0:\n')
    await addLayer(image, bundle, 'BusyBox and its links')
    await configureImage(image, { env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }, cmd: ['sh'] })
  },
}

async function installBusybox(rootfs: string, workFolder: string): Promise<void> {
  const unpacked = path.join(workFolder, 'package')
  await mkdir(unpacked)
  // Not installed on the host, where it would drive out the package busybox.
  for (const deb of await downloadPackages(['busybox-static'], workFolder)) await unpackPackage(deb, unpacked)
  const source = path.join(unpacked, 'bin/busybox')
  const program = path.join(rootfs, 'bin/busybox')
  await mkdir(path.dirname(program), { recursive: true })
  await copyFile(source, program)
  await chmod(program, 0o755)
  const names = (await runTool([source, '--list-full'])).trim().split('\n')
  for (const name of names.filter((each) => each !== 'bin/busybox')) {
    await mkdir(path.join(rootfs, path.dirname(name)), { recursive: true })
    await link(program, path.join(rootfs, name))
  }
}
