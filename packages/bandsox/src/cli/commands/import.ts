/** `import`: takes over what the earlier project, in Python, has left. */
import type { Command } from 'commander'
import type { ImportReport } from '../../sandbox/import/import-storage.js'
import { contextOf } from '../context.js'
import { importText } from '../import-text.js'
import { sizeText } from '../text.js'

/** sysexits.h: some of it was not fit, or could not be copied. */
const EX_DATAERR = 65
/** sysexits.h: nothing is wrong, but some of it runs there still, and is not here. */
const EX_TEMPFAIL = 75

export function addImport(program: Command): void {
  program
    .command('import')
    .argument('<folder>', 'its storage, such as /var/lib/sandbox')
    .option('-n, --dry-run', 'only tell what would be done')
    .description(
      'import the VMs of the earlier BandSox (in Python), which is only read; exits with 65 when some could not be imported, else with 75 when some still run there',
    )
    .action(async (folder: string, { dryRun = false }: { dryRun?: boolean }, command: Command) => {
      const { requireSeparate } = await import('../../sandbox/import/import-storage.js') // late: it takes its time to load
      const context = contextOf(command)
      await requireSeparate(folder, context.config.storage) // before that one is made
      const bandsox = await context.open()
      const report = await bandsox.importFrom(folder, {
        dryRun,
        signal: context.signal,
        onCopy: ({ earlierId, diskBytes, index, count }) => {
          if (process.stderr.isTTY && !context.isJson)
            process.stderr.write(`copying ${index} of ${count}: ${earlierId}, ${sizeText(diskBytes)}\n`)
        },
      })
      context.print(importText(report), report)
      process.exitCode = exitStatus(report)
    })
}

function exitStatus({ vms, dryRun, neededBytes, freeBytes }: ImportReport): number {
  const has = (...outcomes: (typeof vms)[number]['outcome'][]) => vms.some(({ outcome }) => outcomes.includes(outcome))
  if (has('refused', 'failed') || (dryRun && neededBytes > freeBytes)) return EX_DATAERR
  return has('running') ? EX_TEMPFAIL : 0
}
