/** `completion`, which prints a shell's script, and `__complete`, which the scripts ask what may follow. */
import { homedir } from 'node:os'
import { Argument, type Command } from 'commander'
import { readConfig } from '../../config.js'
import { rootOf } from '../command-tree.js'
import { complete, completionText, type Names } from '../completion/complete.js'
import { completionScripts, type Shell, shells } from '../completion/scripts.js'
import { contextOf } from '../context.js'

const DESCRIPTION = `Print the script that completes commands, options, and the names of sandboxes and images in a shell.

For bash, in this session, or in ~/.bashrc for each:

  source <(bandsox completion bash)

For zsh, into a folder of its fpath, before compinit runs:

  bandsox completion zsh > "\${fpath[1]}/_bandsox"

For fish:

  bandsox completion fish > ~/.config/fish/completions/bandsox.fish`

export function addCompletion(program: Command): void {
  program
    .command('completion')
    .addArgument(new Argument('<shell>', 'the shell').choices(shells))
    .summary('print the script for completion in a shell')
    .description(DESCRIPTION)
    .action((shell: Shell, _options: unknown, command: Command) => {
      const script = completionScripts[shell]
      contextOf(command).print(script, { shell, script })
    })
}

export function addComplete(program: Command): void {
  program
    .command('__complete', { hidden: true })
    .argument('[words...]', "what follows the program's name, up to the cursor")
    .helpOption(false)
    .allowUnknownOption()
    .passThroughOptions()
    .action(async (words: string[], _options: unknown, command: Command) => {
      try {
        process.stdout.write(completionText(await complete(rootOf(command), words, namesIn)))
      } catch {
        // Whatever it is: somebody has pressed Tab, and their prompt is no place to report it. The command itself will.
      }
    })
}

function namesIn(storage: string | undefined): Names {
  const config = readConfig(
    process.env,
    storage === undefined ? {} : { storage: storage.replace(/^~(?=\/|$)/, homedir()) },
  )
  const load = async () => (await import('../../sandbox/known-names.js')).knownNames(config)
  return {
    sandboxes: async () => (await load()).sandboxes(),
    images: async () => (await load()).images(),
    snapshots: async () => (await load()).snapshots(),
  }
}
