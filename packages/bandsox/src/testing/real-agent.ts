/** The agent's own binary, serving on a Unix socket of this host: its commands run here, as this user. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { Agent } from '../guest/agent.js'
import { socketLink } from '../link/socket-link.js'
import { type TestScope, temporaryFolder } from './temporary-folder.js'

const program = fileURLToPath(new URL('../../native/bandsox-agent', import.meta.url))

export async function realAgent(t: TestScope): Promise<Agent> {
  const socket = path.join(await temporaryFolder(t), 'agent.sock')
  const child = spawn(program, ['serve', socket], { stdio: ['ignore', 'ignore', 'inherit'] })
  const ended = once(child, 'exit')
  const agent = new Agent([socketLink('vsock', socket, 9000)])
  t.after(async () => {
    agent.close()
    child.kill('SIGKILL')
    await ended
  })
  await agent.waitUntilReady({ timeoutMs: 10_000 })
  return agent
}
