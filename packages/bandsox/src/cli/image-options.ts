/** How an image is fetched: the options that `create`, `run`, `image pull` and `image import` share. */
import { BandSoxError, type PullOptions, type PullPolicy } from '@bandsox/sdk'
import { type Command, Option } from 'commander'

export const IMAGE_ARGUMENT = 'such as alpine, ghcr.io/owner/name:tag, oci:FOLDER, docker-archive:FILE or bandsox/base'

export interface ImageOptions {
  pull?: PullPolicy
  platform?: string
  username?: string
  passwordStdin?: boolean
}

export const withPlatformOption = (command: Command): Command =>
  command.option('--platform <os/arch>', "platform of the image (default: the host's)")

/** @param policy The default of `--pull`. */
export function withImageOptions(command: Command, policy: PullPolicy): Command {
  const pull = new Option('--pull <when>', `whether to fetch the image (default: ${policy})`)
  return withPlatformOption(command.addOption(pull.choices(['missing', 'always', 'never'])))
    .option(
      '--username <name>',
      'for the registry; with --password-stdin (default: what bandsox, docker or podman login stored)',
    )
    .option('--password-stdin', 'read the password from standard input')
}

export async function imageOptions(options: ImageOptions, signal: AbortSignal): Promise<PullOptions> {
  const { pull, platform, username, passwordStdin } = options
  if ((username !== undefined) !== (passwordStdin === true)) {
    throw new BandSoxError('bad-request', '--username and --password-stdin go together', {
      hint: 'a password on the command line could be read by others: echo "$PASSWORD" | bandsox … --password-stdin',
    })
  }
  return {
    signal,
    ...(pull !== undefined && { pull }),
    ...(platform !== undefined && { platform }),
    ...(username !== undefined && { credentials: { username, password: await readPassword() } }),
  }
}

/** A registry's token has some KiB at most. */
const MAX_PASSWORD_BYTES = 64 * 1024

/** One line from standard input, without its end. @throws `bad-request` when it is empty or no password. */
export async function readPassword(): Promise<string> {
  let text = ''
  for await (const chunk of process.stdin.setEncoding('utf8')) {
    text += chunk
    if (text.length > MAX_PASSWORD_BYTES)
      throw new BandSoxError('bad-request', 'the password on standard input is too long')
  }
  const password = text.replace(/\r?\n$/, '')
  if (password === '') throw new BandSoxError('bad-request', 'the password on standard input is empty')
  return password
}
