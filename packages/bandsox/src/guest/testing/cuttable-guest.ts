/** The agent itself, serving on this machine without a VM, behind two links that a test cuts. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { access, mkdir } from 'node:fs/promises'
import path from 'node:path'
import { readConfig } from '../../config.js'
import { socketLink } from '../../link/socket-link.js'
import { type CuttingSocket, cuttingSocket } from '../../testing/cutting-socket.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { Agent, type AgentOptions } from '../agent.js'

export interface CuttableGuest {
  agent: Agent
  vsock: CuttingSocket
  serial: CuttingSocket
  /** On this machine: the agent serves here, without a VM. */
  folder: string
}

export async function cuttableGuest(t: TestScope, options: AgentOptions = {}): Promise<CuttableGuest> {
  const folder = await temporaryFolder(t)
  const socket = path.join(folder, 'agent.sock')
  const agentProcess = spawn(readConfig().agentPath, ['serve', socket], { stdio: 'ignore' })
  t.after(() => end(agentProcess))
  while (!(await isThere(socket))) await new Promise((resolve) => setTimeout(resolve, 5))
  const vsock = await cuttingSocket(t, socket)
  const serial = await cuttingSocket(t, socket)
  const agent = new Agent([socketLink('vsock', vsock.path, 9000), socketLink('serial', serial.path, 9000)], options)
  t.after(() => agent.close())
  const files = path.join(folder, 'files')
  await mkdir(files)
  return { agent, vsock, serial, folder: files }
}

async function end(agentProcess: ChildProcess): Promise<void> {
  if (agentProcess.exitCode !== null || agentProcess.signalCode !== null) return
  agentProcess.kill('SIGKILL')
  await once(agentProcess, 'exit')
}

export const isThere = (file: string): Promise<boolean> =>
  access(file).then(
    () => true,
    () => false,
  )
