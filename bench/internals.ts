/**
 * The parts of the product that no program is meant to use, and a bare machine needs in order to be started by the very same
 * code. They are loaded by path, since the package exports its library only.
 */
import type * as Boot from '../packages/bandsox/src/boot/initramfs.js'
import type * as Config from '../packages/bandsox/src/config.js'
import type * as AgentModule from '../packages/bandsox/src/guest/agent.js'
import type * as Download from '../packages/bandsox/src/guest/download.js'
import type * as Upload from '../packages/bandsox/src/guest/upload.js'
import type * as UploadSource from '../packages/bandsox/src/guest/upload-source.js'
import type * as Disk from '../packages/bandsox/src/image/disk.js'
import type * as Images from '../packages/bandsox/src/image/image-store.js'
import type * as Shim from '../packages/bandsox/src/process/shim.js'
import type * as UnixSocket from '../packages/bandsox/src/process/unix-socket.js'
import type * as Create from '../packages/bandsox/src/sandbox/create.js'
import type * as Host from '../packages/bandsox/src/sandbox/host.js'
import type * as LocalBandSoxModule from '../packages/bandsox/src/sandbox/local-bandsox.js'
import type * as LocalSandboxModule from '../packages/bandsox/src/sandbox/local-sandbox.js'
import type * as Prepare from '../packages/bandsox/src/sandbox/prepare.js'
import type * as QuickStart from '../packages/bandsox/src/sandbox/quick-start.js'
import type * as Settle from '../packages/bandsox/src/sandbox/settle.js'
import type * as Template from '../packages/bandsox/src/sandbox/template/make-template.js'
import type * as Record from '../packages/bandsox/src/store/record.js'
import type * as SandboxStore from '../packages/bandsox/src/store/sandbox-store.js'
import type * as Cgroup from '../packages/bandsox/src/vmm/cgroup.js'
import type * as VmmHost from '../packages/bandsox/src/vmm/host.js'
import type * as Limits from '../packages/bandsox/src/vmm/limits.js'
import type * as CommandLine from '../packages/bandsox/src/vmm/qemu/command-line.js'
import type * as QemuHost from '../packages/bandsox/src/vmm/qemu/host.js'
import type * as QemuMachine from '../packages/bandsox/src/vmm/qemu/machine.js'
import type * as Qemu from '../packages/bandsox/src/vmm/qemu/qemu.js'
import type * as Qmp from '../packages/bandsox/src/vmm/qemu/qmp.js'

/** Seen from `bench/dist`. */
const load = async <T>(module: string): Promise<T> =>
  (await import(new URL(`../../packages/bandsox/dist/${module}.js`, import.meta.url).href)) as T

export const { buildInitramfs } = await load<typeof Boot>('boot/initramfs')
export const { readConfig } = await load<typeof Config>('config')
export const { Agent } = await load<typeof AgentModule>('guest/agent')
export const { download } = await load<typeof Download>('guest/download')
export const { upload } = await load<typeof Upload>('guest/upload')
export const { bytesSource } = await load<typeof UploadSource>('guest/upload-source')
export const { ImageStore } = await load<typeof Images>('image/image-store')
export const { copyEmptyDisk, copySparse, emptyDisk } = await load<typeof Disk>('image/disk')
export const { consoleConfig, readRun, SANDBOX_MARK, startShim } = await load<typeof Shim>('process/shim')
export const { connectUnixSocket } = await load<typeof UnixSocket>('process/unix-socket')
export const { createSandbox, createSandboxRecord } = await load<typeof Create>('sandbox/create')
export const { machineFiles } = await load<typeof Host>('sandbox/host')
const localBandSox = await load<typeof LocalBandSoxModule>('sandbox/local-bandsox')
export const { openHost } = localBandSox
export const LocalBandSox: typeof LocalBandSoxModule.LocalBandSox = localBandSox.LocalBandSox
export type LocalBandSox = LocalBandSoxModule.LocalBandSox
export const { LocalSandbox } = await load<typeof LocalSandboxModule>('sandbox/local-sandbox')
const prepare = await load<typeof Prepare>('sandbox/prepare')
export const { DEFAULT_DISK_MIB, storageFolders } = prepare
export const loadBoot: typeof Prepare.loadBoot = prepare.loadBoot
const settle = await load<typeof Settle>('sandbox/settle')
export const { destroy, endMachine, stateNow } = settle
export const { quickStart } = await load<typeof QuickStart>('sandbox/quick-start')
export const { makeTemplate } = await load<typeof Template>('sandbox/template/make-template')
export const { unstarted } = await load<typeof Record>('store/record')
export const { newSandboxId } = await load<typeof SandboxStore>('store/sandbox-store')
export const { cgroupSupport, machineCgroup } = await load<typeof Cgroup>('vmm/cgroup')
export const { defaultLimits } = await load<typeof Limits>('vmm/limits')
export const { AGENT_SERIAL_SOCKET, EVENTS_SOCKET, qemuCommandLine } =
  await load<typeof CommandLine>('vmm/qemu/command-line')
export const { accelerationBy, probeKvm } = await load<typeof VmmHost>('vmm/host')
export const { findQemu } = await load<typeof QemuHost>('vmm/qemu/host')
const qemuMachine = await load<typeof QemuMachine>('vmm/qemu/machine')
export const attachMachine: typeof QemuMachine.attachMachine = qemuMachine.attachMachine
export const { qemuDriver } = await load<typeof Qemu>('vmm/qemu/qemu')
export const { withQmp } = await load<typeof Qmp>('vmm/qemu/qmp')
