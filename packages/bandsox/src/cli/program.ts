/** The definitions of all commands: what main.ts parses with, and what completion and manual are generated from. */
import { readFileSync } from 'node:fs'
import { Command, Option } from 'commander'
import { addCleanup } from './commands/cleanup.js'
import { addComplete, addCompletion } from './commands/completion.js'
import { addCopy } from './commands/copy.js'
import { addCreate } from './commands/create.js'
import { addDoctor } from './commands/doctor.js'
import { addExec, addRun } from './commands/exec.js'
import { addImage } from './commands/image.js'
import { addImport } from './commands/import.js'
import { addInit } from './commands/init.js'
import { addJobs } from './commands/jobs.js'
import { addLogin, addLogout } from './commands/login.js'
import { addEvents, addLogs } from './commands/logs.js'
import { addMan } from './commands/man.js'
import { addMetrics } from './commands/metrics.js'
import { addPool } from './commands/pool.js'
import { addPortForward } from './commands/port-forward.js'
import { addSnapshot } from './commands/snapshot.js'
import { addSystem } from './commands/system.js'
import { addTemplate } from './commands/template.js'
import { addTerminal } from './commands/terminal.js'
import { addDownload, addUpload } from './commands/transfer.js'
import { addShortcuts, addVm } from './commands/vm.js'
import { addVsock } from './commands/vsock.js'
import { logLevels } from './log.js'

export function buildProgram(asJson: boolean): Command {
  const program = new Command('bandsox')
    .description('A real virtual machine per sandbox.')
    .version(packageVersion())
    .enablePositionalOptions()
    .configureOutput(asJson ? { writeErr: () => undefined } : {}) // `reportError` says it then, as JSON
    .configureHelp({ showGlobalOptions: true })
    .exitOverride()
  for (const option of globalOptions()) program.addOption(option)
  addCreate(program)
  addRun(program)
  addExec(program)
  addTerminal(program)
  addUpload(program)
  addDownload(program)
  addCopy(program)
  addPortForward(program)
  addVm(program)
  addShortcuts(program)
  addImage(program)
  addJobs(program)
  addSnapshot(program)
  addTemplate(program)
  addPool(program)
  addLogin(program)
  addLogout(program)
  addLogs(program)
  addEvents(program)
  addMetrics(program)
  addVsock(program)
  addImport(program)
  addInit(program)
  addSystem(program)
  addCleanup(program)
  addDoctor(program)
  addCompletion(program)
  addComplete(program)
  addMan(program)
  for (const command of program.commands) allowGlobalOptions(command, program)
  return program
}

const globalOptions = (): Option[] => [
  new Option(
    '--storage <folder>',
    'folder of all state (default: $BANDSOX_STORAGE, /var/lib/bandsox for root, else ~/.local/share/bandsox)',
  ),
  new Option(
    '--vmm <name>',
    'VMM of machines that are started: Firecracker where it is installed and KVM works, else QEMU, or one of them (default: $BANDSOX_VMM, else auto)',
  ).choices(['auto', 'firecracker', 'qemu']),
  new Option(
    '--jailer <mode>',
    'put Firecracker into a jail: where that can be, or always, or never (default: $BANDSOX_JAIL, else auto)',
  ).choices(['auto', 'on', 'off']),
  new Option('--json', 'print JSON, for programs'),
  new Option('--log-level <level>', 'what to log on stderr, in UTC (default: $BANDSOX_LOG_LEVEL, else warn)').choices(
    logLevels,
  ),
]

/** They are understood before and after the command's name, also of a command that was made by itself and then added. */
function allowGlobalOptions(command: Command, program: Command): void {
  command.configureOutput(program.configureOutput()).configureHelp(program.configureHelp()).exitOverride()
  if (command.commands.length === 0) for (const option of globalOptions()) command.addOption(option.hideHelp())
  for (const child of command.commands) allowGlobalOptions(child, program)
}

function packageVersion(): string {
  const file = new URL('../../package.json', import.meta.url)
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version // zod takes 50 ms to load, and the file is ours
}
