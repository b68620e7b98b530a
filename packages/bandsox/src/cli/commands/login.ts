/** `login` to a registry, and `logout`. */
import type { Command } from 'commander'
import { eraseRegistryCredentials, keepRegistryCredentials } from '../../sandbox/credentials.js'
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
    .description('keep credentials for a registry, readable for this user alone')
    .action(async (registry: string, options: { username: string }, command: Command) => {
      const context = contextOf(command)
      const [file] = context.config.authFiles
      await keepRegistryCredentials(file, registry, { username: options.username, password: await readPassword() })
      context.print(`Credentials stored: ${registry}, in ${file}`, { registry, file })
    })
}

export function addLogout(program: Command): void {
  program
    .command('logout')
    .argument('[registry]', REGISTRY, DEFAULT_REGISTRY)
    .description('forget the credentials that login has kept')
    .action(async (registry: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const removed = await eraseRegistryCredentials(context.config.authFiles[0], registry)
      context.print(removed ? `Credentials removed: ${registry}` : `There were none: ${registry}`, {
        registry,
        removed,
      })
    })
}
