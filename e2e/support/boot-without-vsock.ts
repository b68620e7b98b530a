/** A storage folder whose guests have no vsock module, as of a kernel without one. */
import path from 'node:path'
import { publishJson } from 'bandsox/internal/artifact/publish.js'
import { publishRecorded } from 'bandsox/internal/artifact/recorded-file.js'
import { loadBootFiles } from 'bandsox/internal/boot/boot.js'
import { buildInitramfs, digestAgent, initramfsKey } from 'bandsox/internal/boot/initramfs.js'
import { readConfig } from 'bandsox/internal/config.js'

export async function takeVsockOut(storage: string): Promise<void> {
  const directory = path.join(storage, 'boot')
  const { agentPath } = readConfig()
  const { kernel } = await loadBootFiles(directory)
  const modules = kernel.modules.filter(({ name }) => !name.includes('vsock'))
  if (modules.length === kernel.modules.length) throw new Error('this kernel has no vsock module to take out')
  const initramfs = await publishRecorded(directory, 'initramfs-000000000000.cpio', async (output) => {
    await buildInitramfs({ kernel: { ...kernel, modules }, agentPath, output })
  })
  const key = initramfsKey(kernel, await digestAgent(agentPath)) // so that nobody takes it for an old one
  await publishJson(path.join(directory, 'boot.json'), {
    version: 1,
    kernel: kernel.name,
    initramfs,
    initramfsKey: key,
  })
}
