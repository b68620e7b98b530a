/** `logs` of one sandbox's console, and `events` of all. */
import { once } from 'node:events'
import { BandSoxError, printable, type SandboxEvent } from '@bandsox/sdk'
import type { Command } from 'commander'
import type { LocalBandSox } from '../../sandbox/local-bandsox.js'
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
        if (context.isJson) await print(`${JSON.stringify({ console: decoder.decode(chunk, { stream: true }) })}\n`)
        // A guest must not steer the terminal of who looks at what it printed.
        else if (process.stdout.isTTY)
          await print(printable(decoder.decode(chunk, { stream: true }).replaceAll('\r', '')))
        else await print(chunk)
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
      const id = name === undefined ? undefined : await idOf(bandsox, name)
      for await (const event of bandsox.events({ follow: options.follow === true, signal: context.signal })) {
        if (id !== undefined && event.sandbox !== id) continue
        await print(`${context.isJson ? JSON.stringify(event) : eventText(event)}\n`)
        if (id !== undefined && event.kind === 'deleted') return // nothing more will come
      }
    })
}

/** Also of one that is gone, whose end may be what is asked for: then the last one that had this id or name. */
async function idOf(bandsox: LocalBandSox, name: string): Promise<string> {
  try {
    return (await bandsox.get(name)).id
  } catch (error) {
    if (!(error instanceof BandSoxError && error.code === 'not-found')) throw error
    let found: string | undefined
    for await (const event of bandsox.events()) if (event.sandbox === name || event.name === name) found = event.sandbox
    if (found === undefined) throw error
    return found
  }
}

const eventText = ({ at, sandbox, name, kind, reason }: SandboxEvent): string =>
  `${at} ${sandbox} ${name ?? '-'} ${kind}${reason === undefined ? '' : `: ${reason}`}`

/** At the pace of whoever reads. */
async function print(text: string | Uint8Array): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, 'drain')
}
