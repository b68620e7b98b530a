/** `upload` and `download` of one file. */
import type { ChecksumName, LinkKind, TransferResult } from '@bandsox/sdk'
import { type Command, Option } from 'commander'
import { type Context, contextOf } from '../context.js'
import { linkOption, modeOption } from '../option-parsers.js'
import { progressLine } from '../progress.js'
import { durationText, rateText, sizeText } from '../text.js'

const checksumOption = () =>
  new Option('--checksum <name>', 'checksum compared on both sides (default: the quickest)').choices([
    'xxh64',
    'sha256',
    'md5',
  ])

export function addUpload(program: Command): void {
  program
    .command('upload')
    .argument('<vm>', 'id, id prefix or name')
    .argument('<local>', 'file on this host')
    .argument('<remote>', 'absolute path in the guest; missing folders are made')
    .option('--mode <octal>', "permissions (default: the local file's)", modeOption)
    .option('-u, --user <user>', 'owner of a new file (default: root)')
    .addOption(checksumOption())
    .addOption(linkOption())
    .description('copy a file into a sandbox, checked and replaced in one step')
    .action(
      async (
        vm: string,
        local: string,
        remote: string,
        options: { mode?: number; user?: string; checksum?: ChecksumName; link?: LinkKind },
        command: Command,
      ) => {
        const context = contextOf(command)
        const sandbox = await (await context.open()).get(vm)
        const { onProgress, clear } = progressLine(remote)
        try {
          const result = await sandbox.files.upload(local, remote, { ...options, onProgress, signal: context.signal })
          clear()
          report(context, 'uploaded', result)
        } finally {
          clear()
        }
      },
    )
}

export function addDownload(program: Command): void {
  program
    .command('download')
    .argument('<vm>', 'id, id prefix or name')
    .argument('<remote>', 'absolute path in the guest')
    .argument('<local>', 'file or folder on this host; missing folders are made')
    .addOption(checksumOption())
    .addOption(linkOption())
    .description('copy a file out of a sandbox, checked and replaced in one step')
    .action(
      async (
        vm: string,
        remote: string,
        local: string,
        options: { checksum?: ChecksumName; link?: LinkKind },
        command: Command,
      ) => {
        const context = contextOf(command)
        const sandbox = await (await context.open()).get(vm)
        const { onProgress, clear } = progressLine(remote)
        try {
          const result = await sandbox.files.download(remote, local, { ...options, onProgress, signal: context.signal })
          clear()
          report(context, 'downloaded', result)
        } finally {
          clear()
        }
      },
    )
}

/** The log line's wording is what users were told to look for: it tells the quick path from the slow one. */
function report(context: Context, verb: 'uploaded' | 'downloaded', result: TransferResult): void {
  const { path, link, sizeBytes, durationMs, checksum } = result
  const figures = `${sizeText(sizeBytes)} in ${durationText(durationMs)}, ${rateText(sizeBytes, durationMs)}, ${checksum.algorithm} ${checksum.value}`
  context.print(`File ${verb} via ${link === 'vsock' ? 'vsock' : 'agent'}: ${path} (${figures})`, result)
}
