/** `vm list`, `show`, `stop`, `pause`, `resume`, `delete`, and `logs`. */
import { once } from 'node:events'
import type { Sandbox, SandboxInfo } from '@bandsox/sdk'
import type { Command } from 'commander'
import { type Context, contextOf } from '../context.js'
import { durationText, table } from '../text.js'

export function addVm(program: Command): void {
  const vm = program.command('vm').description('the sandboxes of this host')
  vm.command('list')
    .alias('ls')
    .description('list all of them')
    .action(async (_options: unknown, command: Command) => {
      const context = contextOf(command)
      const infos = await (await context.open()).list()
      context.print(listText(infos), infos)
    })
  vm.command('show')
    .argument('<vm>', 'id, id prefix or name')
    .description('all that is known of one')
    .action(async (name: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const info = await (await (await context.open()).get(name)).info()
      context.print(showText(info), info)
    })
  addAction(
    vm,
    'stop',
    'shut it down, by force where it does not listen; its disk is kept',
    'stopped',
    (sandbox, { signal }) => sandbox.stop({ signal }),
  )
  addAction(vm, 'pause', 'halt its CPUs', 'paused', (sandbox) => sandbox.pause())
  addAction(vm, 'resume', 'let its CPUs run on', 'resumed', (sandbox) => sandbox.resume())
  vm.command('delete')
    .alias('rm')
    .argument('<vm...>', 'ids, id prefixes or names')
    .option('-f, --force', 'also one that runs, without shutting it down')
    .description('remove a sandbox and its disk')
    .action(async (names: string[], options: { force?: boolean }, command: Command) => {
      const context = contextOf(command)
      const bandsox = await context.open()
      for (const name of names) {
        const sandbox = await bandsox.get(name)
        await sandbox.delete({ force: options.force === true })
        context.print(`VM deleted: ${sandbox.id}`, { id: sandbox.id, deleted: true })
      }
    })
}

function addAction(
  vm: Command,
  name: string,
  description: string,
  done: string,
  act: (sandbox: Sandbox, context: Context) => Promise<void>,
): void {
  vm.command(name)
    .argument('<vm...>', 'ids, id prefixes or names')
    .description(description)
    .action(async (names: string[], _options: unknown, command: Command) => {
      const context = contextOf(command)
      const bandsox = await context.open()
      for (const each of names) {
        const sandbox = await bandsox.get(each)
        await act(sandbox, context)
        context.print(`VM ${done}: ${sandbox.id}`, await sandbox.info())
      }
    })
}

export function addLogs(program: Command): void {
  program
    .command('logs')
    .argument('<vm>', 'id, id prefix or name')
    .option('-f, --follow', 'go on printing what comes')
    .description("print the guest's console")
    .action(async (name: string, options: { follow?: boolean }, command: Command) => {
      const context = contextOf(command)
      const sandbox = await (await context.open()).get(name)
      const decoder = new TextDecoder()
      for await (const chunk of sandbox.logs({ follow: options.follow === true, signal: context.signal })) {
        const to = process.stdout
        const text = context.isJson
          ? `${JSON.stringify({ console: decoder.decode(chunk, { stream: true }) })}\n`
          : chunk
        if (!to.write(text)) await once(to, 'drain')
      }
    })
}

function listText(infos: SandboxInfo[]): string {
  if (infos.length === 0) return 'No VMs found.'
  const rows = infos.map(({ name, state, id, image, vcpu, memoryMib, createdAt }) => [
    ...[name ?? '-', state.kind, id, image],
    ...[String(vcpu), `${memoryMib} MiB`, createdAt],
  ])
  return `${table(['NAME', 'STATUS', 'ID', 'IMAGE', 'VCPU', 'MEMORY', 'CREATED'], rows)}\nTotal: ${infos.length} VM(s)`
}

function showText(info: SandboxInfo): string {
  const { state, vsock, timings } = info
  const rows = [
    ['id', info.id],
    ['name', info.name ?? '-'],
    ['state', `${state.kind} since ${state.since}${state.kind === 'failed' ? `: ${state.reason}` : ''}`],
    ['image', info.image],
    ['shape', `${info.vcpu} vCPU, ${info.memoryMib} MiB memory, ${info.diskMib} MiB disk`],
    ['vmm', `${info.vmm} (${info.accelerator})${info.vmmPid === null ? '' : `, process ${info.vmmPid}`}`],
    ['vsock', vsock === null ? 'none' : `CID ${vsock.cid}, port ${vsock.port}, by ${vsock.backend}`],
    ['created', info.createdAt],
    ['directory', info.directory],
    [
      'start',
      Object.entries(timings)
        .map(([stage, ms]) => `${stage} ${durationText(ms)}`)
        .join(', '),
    ],
  ]
  return rows.map(([key = '', value = '']) => `${key.padEnd(10)} ${value}`).join('\n')
}
