/** `init`: gets what this host needs, and says what it has got. */
import { printableLine } from '@bandsox/sdk'
import type { Command } from 'commander'
import type { InitEvent, InitializedHost, InitStep } from '../../sandbox/init/init-host.js'
import { type Context, contextOf } from '../context.js'
import { progressLine } from '../progress.js'
import { durationText } from '../text.js'

interface Options {
  firecrackerVersion?: string
  firecrackerUrl?: string
  firecrackerSha256?: string
  kernelUrl?: string
  kernelSha256?: string
  force?: boolean
  skipFirecracker?: boolean
  skipKernel?: boolean
  skipImage?: boolean
  skipDisk?: boolean
}

export function addInit(program: Command): void {
  program
    .command('init')
    .option(
      '--firecracker-version <version>',
      'release to get, such as 1.16.1 (default: the one this version was made with)',
    )
    .option(
      '--firecracker-url <url>',
      "archive (.tgz) of a release, or folder of archives, such as a mirror's; http, https or file (default: the project's releases)",
    )
    .option(
      '--firecracker-sha256 <hex>',
      'checksum of the archive (default: from the file beside it, ….tgz.sha256.txt)',
    )
    .option(
      '--kernel-url <url>',
      "guest kernel, a bzImage or an ELF vmlinux; http, https or file (default: the one that is there, else the distribution's)",
    )
    .option(
      '--kernel-sha256 <hex>',
      'checksum of the kernel (default: from the file beside it, ….sha256.txt or ….sha256)',
    )
    .option('--force', 'fetch Firecracker, and the kernel of --kernel-url, though they are there')
    .option('--skip-firecracker', 'leave Firecracker as it is')
    .option('--skip-kernel', 'leave the guest kernel as it is')
    .option('--skip-image', 'leave the built-in image as it is')
    .option('--skip-disk', 'leave the empty disk as it is')
    .description('get what this host needs: Firecracker, its jailer, a guest kernel and the built-in image')
    .action(async (options: Options, command: Command) => {
      const context = contextOf(command)
      const { skipFirecracker, skipKernel, skipImage, skipDisk, ...what } = options
      const skipped: Record<InitStep, boolean | undefined> = {
        firecracker: skipFirecracker,
        kernel: skipKernel,
        image: skipImage,
        disk: skipDisk,
      }
      const skip = (Object.keys(skipped) as InitStep[]).filter((step) => skipped[step] === true)
      const { initHost } = await import('../../sandbox/init/init-host.js') // late, for the sake of completion: see context.ts
      const { report, clear } = reporter(context)
      let host: InitializedHost
      try {
        host = await initHost(context.config, { ...what, skip, report, signal: context.signal })
      } finally {
        clear()
      }
      context.print(`Host ready: ${context.config.storage}`, { kind: 'host', ...described(host) })
    })
}

/** A line for each step; a line that rewrites itself while something comes; or with `--json` each event. */
function reporter(context: Context): { report: (event: InitEvent) => void; clear: () => void } {
  if (context.isJson) return { report: (event) => context.print('', event), clear: () => undefined }
  let line: { url: string; show: ReturnType<typeof progressLine> } | undefined
  const clear = () => {
    line?.show.clear()
    line = undefined
  }
  const say = (text: string) => {
    clear()
    process.stderr.write(`${printableLine(text)}\n`)
  }
  const report = (event: InitEvent) => {
    switch (event.kind) {
      case 'download': {
        const { url, bytes, totalBytes } = event
        if (line?.url !== url) {
          if (bytes > 0) say(`going on with ${url}`)
          else say(`fetching ${url}`)
          line = { url, show: progressLine(printableLine(url.split('/').at(-1) ?? url)) }
        }
        line.show.onProgress({ bytes, totalBytes })
        return
      }
      case 'activity':
        return say(`${event.text} …`)
      case 'waiting':
        return say(`waiting for process ${event.pid}, which fetches the same`)
      case 'warning':
        clear()
        return context.warn(event.message)
      case 'step':
        clear()
        return context.print(stepText(event), undefined)
    }
  }
  return { report, clear }
}

const stepText = ({ step, detail, made, tookMs }: InitEvent & { kind: 'step' }): string =>
  `${step.padEnd(11)}  ${made ? `made in ${durationText(tookMs)}` : 'was there'}: ${detail}`

/** For programs: what they may need, not what is inside of it. */
function described({ firecracker, boot, image, disk }: InitializedHost) {
  return {
    firecracker: firecracker ?? null,
    kernel: boot === undefined ? null : { release: boot.kernel.release, path: boot.kernel.vmlinux.path },
    image: image === undefined ? null : { id: image.id },
    disk: disk ?? null,
  }
}
