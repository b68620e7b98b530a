/** `login` to a registry, and `logout`. */
import type { Command } from 'commander'
import { imageSettings } from '../../config.js'
import { contextOf } from '../context.js'
import { readPassword } from '../image-options.js'

const REGISTRY = 'such as ghcr.io'
const DEFAULT_REGISTRY = 'docker.io'

export function addLogin(program: Command): void {
  program
    .command('login')
    .argument('[registry]', REGISTRY, DEFAULT_REGISTRY)
    .requiredOption('--username <name>', 'user at the registry')
    .requiredOption('--password-stdin', 'read the password from standard input')
    .description('try credentials at a registry, and keep them, readable for this user alone')
    .action(async (registry: string, options: { username: string }, command: Command) => {
      const { logIn } = await import('../../sandbox/credentials.js') // late, for the sake of completion: see context.ts
      const context = contextOf(command)
      const [file] = context.config.authFiles
      const credentials = { username: options.username, password: await readPassword() }
      const { debug, signal } = context
      await logIn(file, registry, credentials, { settings: imageSettings(context.config), debug, signal })
      context.print(`Credentials stored: ${registry}, in ${file}`, { registry, file })
    })
}

export function addLogout(program: Command): void {
  program
    .command('logout')
    .argument('[registry]', REGISTRY, DEFAULT_REGISTRY)
    .description('forget the credentials that login has kept')
    .action(async (registry: string, _options: unknown, command: Command) => {
      const { logOut } = await import('../../sandbox/credentials.js')
      const context = contextOf(command)
      const removed = await logOut(context.config.authFiles[0], registry)
      context.print(removed ? `Credentials removed: ${registry}` : `There were none: ${registry}`, {
        registry,
        removed,
      })
    })
}
