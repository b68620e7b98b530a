/** `man`: the manual, written from the definitions of the commands. */
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { Command } from 'commander'
import { makeFolder } from '../../process/make-folder.js'
import { rootOf } from '../command-tree.js'
import { contextOf } from '../context.js'
import { manPages } from '../man/pages.js'
import { counted } from '../text.js'

const DESCRIPTION = `Print the manual page of bandsox, or write those of all commands into a folder.

To read it:

  bandsox man | man -l -

To have "man bandsox-create" show a page, as root:

  bandsox man --output /usr/local/share/man/man1`

export function addMan(program: Command): void {
  program
    .command('man')
    .option('--output <folder>', 'write all pages into this folder, which is made if it is missing')
    .summary('print the manual page, or write those of all commands')
    .description(DESCRIPTION)
    .action(async ({ output }: { output?: string }, command: Command) => {
      const context = contextOf(command)
      const pages = manPages(rootOf(command))
      const [first] = pages
      if (output === undefined) {
        context.print(first?.text ?? '', { pages })
        return
      }
      const folder = path.resolve(output)
      await makeFolder(folder)
      for (const { file, text } of pages) await writeFile(path.join(folder, file), text)
      context.print(`${counted(pages.length, 'page')} written: ${folder}`, {
        folder,
        files: pages.map(({ file }) => file),
      })
    })
}
