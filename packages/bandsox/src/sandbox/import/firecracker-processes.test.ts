/** Real processes under the name of a Firecracker. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { stat } from 'node:fs/promises'
import { createServer } from 'node:net'
import path from 'node:path'
import { describe, it } from 'node:test'
import {
  DEAD_ID,
  earlierStorage,
  OTHER_ID,
  RUNNING_ID,
  runningFirecracker,
  writeDisk,
} from '../../testing/earlier-storage.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { firecrackerProcesses, runsIn } from './firecracker-processes.js'

const noDisk = { problem: 'none' }
const vm = (id: string, pid: number | null = null) => ({ id, pid, disk: noDisk })

async function listeningAt(t: TestScope, name: string) {
  const server = createServer()
  server.listen(path.join(await temporaryFolder(t), name))
  t.after(() => void server.close())
  await once(server, 'listening')
  return server
}

describe('a VM of the earlier project runs', () => {
  it('when a Firecracker has its id among its arguments, whatever pid was recorded', async (t) => {
    const socket = `/var/lib/sandbox/sockets/${RUNNING_ID}.sock`
    const { pid, end } = await runningFirecracker(t, { args: ['--api-sock', socket] })
    const processes = await firecrackerProcesses()
    assert.equal(runsIn(processes, vm(RUNNING_ID)), pid)
    assert.equal(runsIn(processes, vm(RUNNING_ID, process.pid)), pid)
    assert.equal(runsIn(processes, vm(DEAD_ID)), undefined)
    await end()
    assert.equal(runsIn(await firecrackerProcesses(), vm(RUNNING_ID, pid)), undefined)
  })

  it('when one has its socket, or its disk open', async (t) => {
    const server = await listeningAt(t, `vsock_${RUNNING_ID}.sock`)
    const disk = await writeDisk(await earlierStorage(t), 'any-name.ext4')
    const withSocket = await runningFirecracker(t, { server })
    const withDisk = await runningFirecracker(t, { disk, name: 'firecracker-v1.12.0-x86_64' })
    const { dev, ino } = await stat(disk, { bigint: true })
    const processes = await firecrackerProcesses()
    assert.equal(runsIn(processes, vm(RUNNING_ID)), withSocket.pid)
    assert.equal(runsIn(processes, { ...vm(OTHER_ID), disk: { file: `${dev}:${ino}` } }), withDisk.pid)
  })

  it('not when its pid is another program now, or the Firecracker of another VM', async (t) => {
    const shell = await runningFirecracker(t, { name: 'fire', args: ['--api-sock', `${DEAD_ID}.sock`] })
    const other = await runningFirecracker(t, { args: ['--api-sock', `${OTHER_ID}.sock`] })
    const processes = await firecrackerProcesses()
    assert.equal(runsIn(processes, vm(DEAD_ID, shell.pid)), undefined)
    assert.equal(runsIn(processes, vm(DEAD_ID, other.pid)), undefined)
    assert.equal(runsIn(processes, vm(DEAD_ID, process.pid)), undefined)
  })

  it('perhaps, when the Firecracker of its pid may not be looked into: it is left alone', () => {
    const closed = { pid: 77, args: ['firecracker'], sockets: undefined, files: undefined }
    assert.equal(runsIn([closed], vm(DEAD_ID, 77)), 77)
    assert.equal(runsIn([closed], vm(DEAD_ID, 78)), undefined)
    assert.equal(runsIn([{ ...closed, sockets: [], files: new Set<string>() }], vm(DEAD_ID, 77)), undefined)
  })
})
