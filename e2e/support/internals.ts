/** Parts of the product that no program is meant to use, and tests look at. They are loaded by path: the package exports its library only. */
import type * as Shim from '../../packages/bandsox/src/process/shim.js'
import type * as Machine from '../../packages/bandsox/src/vmm/qemu/machine.js'
import type * as Qmp from '../../packages/bandsox/src/vmm/qemu/qmp.js'

/** Seen from `e2e/dist/support`. */
const load = async <T>(module: string): Promise<T> =>
  (await import(new URL(`../../../packages/bandsox/dist/${module}.js`, import.meta.url).href)) as T

export const { readRun } = await load<typeof Shim>('process/shim')
export const { attachMachine } = await load<typeof Machine>('vmm/qemu/machine')
const qmp = await load<typeof Qmp>('vmm/qemu/qmp')
export const withQmp: typeof Qmp.withQmp = qmp.withQmp
