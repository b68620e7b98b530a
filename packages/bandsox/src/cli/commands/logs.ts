/** `logs` of one sandbox's console, and `events` of all. */
import { once } from 'node:events'
import type { SandboxEvent } from '@bandsox/sdk'
import type { Command } from 'commander'
import { contextOf } from '../context.js'

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
        await print(
          context.isJson ? `${JSON.stringify({ console: decoder.decode(chunk, { stream: true }) })}\n` : chunk,
        )
      }
    })
}

export function addEvents(program: Command): void {
  program
    .command('events')
    .argument('[vm]', 'only of this one: id, id prefix or name')
    .option('-f, --follow', 'go on printing what comes')
    .description('print what has happened to the sandboxes')
    .action(async (name: string | undefined, options: { follow?: boolean }, command: Command) => {
      const context = contextOf(command)
      const bandsox = await context.open()
      const id = name === undefined ? undefined : (await bandsox.get(name)).id
      for await (const event of bandsox.events({ follow: options.follow === true, signal: context.signal })) {
        if (id !== undefined && event.sandbox !== id) continue
        await print(`${context.isJson ? JSON.stringify(event) : eventText(event)}\n`)
      }
    })
}

const eventText = ({ at, sandbox, name, kind, reason }: SandboxEvent): string =>
  `${at} ${sandbox} ${name ?? '-'} ${kind}${reason === undefined ? '' : `: ${reason}`}`

/** At the pace of whoever reads. */
async function print(text: string | Uint8Array): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, 'drain')
}
