/** A sandbox over one kind of link, and beside it what bench-guest needs for the same: the bare side. */
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { openBandSox, type Sandbox } from 'bandsox'
import type { BareConnection } from '../bare-connection.js'
import type { BareBoot } from '../bare-machine.js'
import { startBenchGuest } from '../bench-guest.js'

export const lineNames = ['vsock', 'port', 'uart'] as const
export type LineName = (typeof lineNames)[number]

export interface Line {
  name: LineName
  sandbox: Sandbox
  bare: BareConnection
}

/**
 * @param surroundings.scratch A folder for a configuration.
 * @param surroundings.boot With a disk, for the machine whose line is bare. vsock needs none: bench-guest runs beside the agent there.
 */
export async function withLine<T>(
  name: LineName,
  surroundings: { scratch: string; boot: BareBoot; disk: string },
  work: (line: Line) => Promise<T>,
): Promise<T> {
  const configFile = path.join(surroundings.scratch, `${name}.json`)
  await writeFile(configFile, JSON.stringify({ qemu: { serialLine: name === 'uart' ? 'uart' : 'port' } }))
  await using bandsox = await openBandSox({ configFile })
  await using sandbox = await bandsox.create('bandsox/base', { vsock: name === 'vsock' ? 'on' : 'off' })
  if (name !== 'vsock') {
    await using machine = await surroundings.boot.startOnLine(surroundings.disk, name)
    return await work({ name, sandbox, bare: machine.connection })
  }
  await using guest = await startBenchGuest(sandbox)
  const bare = await guest.connect()
  try {
    return await work({ name, sandbox, bare })
  } finally {
    bare.close()
  }
}
