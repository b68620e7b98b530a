/** Loads a state on a stand-in: a process of its own, to be killed. Arguments: storage, the stand-in's folder, whether it is jailed, the machine and the state as JSON. */

import { openHost } from 'bandsox/internal/sandbox/local-bandsox.js'
import type { JailerMode } from 'bandsox/internal/vmm/firecracker/host.js'
import type { MachineSpec, MachineState } from 'bandsox/internal/vmm/vmm.js'
import { standInConfig } from './firecracker.js'

const [, , storage = '', folder = '', jailer = 'off', what = '{}'] = process.argv
const { spec, state } = JSON.parse(what) as { spec: MachineSpec; state: MachineState }
const { vmm } = await openHost(standInConfig(folder, storage, jailer as JailerMode))
process.stdout.write('ready\n')
await vmm.load(spec, state)
