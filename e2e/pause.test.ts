/** A machine that stands still, whoever stopped it and whatever its clients do meanwhile, goes on with its link whole. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { openBandSox } from 'bandsox'
import { readRun } from 'bandsox/internal/process/shim.js'
import { withQmp } from 'bandsox/internal/vmm/qemu/qmp.js'
import { attachTo } from './support/machine.js'
import { onlyOnQemu, temporaryStorage, until } from './support/storage.js'

/** A host's connection to a port of the guest; what comes is thrown away. */
function client(socket: string, port: number): Socket {
  const connection = connect(socket)
  connection.on('error', () => undefined).resume()
  connection.write(`CONNECT ${port}\n`)
  return connection
}

/** The ways in which a machine comes to stand still: its shim is told before, or finds out. */
const ways = {
  'is paused': {
    skip: false,
    stop: async (directory: string) => {
      await using machine = await attachTo(directory)
      await machine.pause()
    },
  },
  'stops without a word': {
    skip: onlyOnQemu('it has no second control socket'),
    stop: (directory: string) =>
      withQmp(path.join(directory, 'qmp.sock'), async (qmp) => void (await qmp.execute('stop'))),
  },
}

for (const [way, { skip, stop }] of Object.entries(ways))
  test(`clients that come, talk, and go while a machine stands still that ${way} do not cost it its link`, {
    skip,
  }, async () => {
    await using storage = await temporaryStorage()
    await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
    const { directory, vsock } = await sandbox.info()
    assert.ok(vsock)
    const socket = path.join(directory, 'vsock.sock')
    const [goes, stays] = [client(socket, vsock.port), client(socket, vsock.port)]
    await Promise.all([once(goes, 'data'), once(stays, 'data')])
    await stop(directory)
    await until(async () => (await readRun(directory)).status?.status === 'paused', 'the shim to know')
    goes.destroy()
    stays.write('nothing that an agent understands')
    const comes = client(socket, vsock.port)
    await delay(100)
    comes.destroy()
    await (await attachTo(directory)).resume()
    assert.equal((await sandbox.exec(['echo', 'whole']).collect()).stdout, 'whole\n')
    stays.destroy()
  })
