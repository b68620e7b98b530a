/** Creates a sandbox on a stand-in: a process of its own, to be killed. Arguments: storage, the stand-in's folder, whether it is jailed. */

import { LocalBandSox } from 'bandsox/internal/sandbox/local-bandsox.js'
import type { JailerMode } from 'bandsox/internal/vmm/firecracker/host.js'
import { standInConfig } from './firecracker.js'

const [, , storage = '', folder = '', jailer = 'off'] = process.argv
const bandsox = await LocalBandSox.open(standInConfig(folder, storage, jailer as JailerMode))
process.stdout.write('ready\n')
await bandsox.create('bandsox/base', { diskMib: 64 })
