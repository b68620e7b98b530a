import assert from 'node:assert/strict'
import { once } from 'node:events'
import { symlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import path from 'node:path'
import { describe, it } from 'node:test'
import { openDescriptors } from '../testing/descriptors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { connectForeignSocket } from './unix-socket.js'

describe('a socket in a folder of a VMM', () => {
  it('is connected to itself, never through a link, and costs no descriptor', async (t) => {
    const folder = await temporaryFolder(t)
    const at = (name: string) => path.join(folder, name)
    const server = createServer((socket) => socket.end('hello'))
    server.listen(at('api.sock'))
    t.after(() => server.close())
    await once(server, 'listening')
    const before = await openDescriptors()
    const socket = await connectForeignSocket(at('api.sock'))
    assert.equal(String((await once(socket, 'data'))[0]), 'hello')
    await once(socket, 'close')
    await symlink(at('api.sock'), at('link.sock'))
    await writeFile(at('file'), '')
    for (const name of ['link.sock', 'file'])
      await assert.rejects(connectForeignSocket(at(name)), { code: 'ENOTSOCK' }, name)
    await assert.rejects(connectForeignSocket(at('none.sock')), { code: 'ENOENT' })
    await assert.rejects(connectForeignSocket(at('api.sock'), AbortSignal.abort(new Error('no'))), /no/)
    assert.deepEqual(await openDescriptors(), before)
  })
})
