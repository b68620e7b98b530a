import assert from 'node:assert/strict'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { runModule } from '../testing/module-process.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { cidPool, Leases, portPool } from './lease.js'

describe('leases', () => {
  it('are the lowest numbers that are free, from the bounds of vsock and of the ports', async (t) => {
    const leases = new Leases(await temporaryFolder(t))
    assert.deepEqual([await leases.take(cidPool, 'a'), await leases.take(cidPool, 'b')], [3, 4])
    assert.deepEqual([await leases.take(portPool, 'a'), await leases.take(portPool, 'b')], [9_000, 9_001])
    await leases.release(cidPool, 3, 'a')
    assert.deepEqual([await leases.take(cidPool, 'c'), await leases.take(cidPool, 'd')], [3, 5])
    assert.deepEqual(await leases.list(cidPool), [
      { number: 3, owner: 'c' },
      { number: 4, owner: 'b' },
      { number: 5, owner: 'd' },
    ])
  })

  it('are given back by their owner only, and once', async (t) => {
    const leases = new Leases(await temporaryFolder(t))
    const number = await leases.take(cidPool, 'a')
    await leases.release(cidPool, number, 'b')
    assert.equal(await leases.ownerOf(cidPool, number), 'a')
    await leases.release(cidPool, number, 'a')
    await leases.release(cidPool, number, 'a')
    assert.equal(await leases.ownerOf(cidPool, number), undefined)
    assert.deepEqual(await leases.list(cidPool), [])
    assert.deepEqual(await leases.list(portPool), []) // no folder yet
  })

  it('end when all are taken, and say so', async (t) => {
    const leases = new Leases(await temporaryFolder(t))
    const few = { name: 'port', from: 9_000, to: 9_002 } as const
    for (let number = 9_000; number <= 9_002; number++) assert.equal(await leases.take(few, 'a'), number)
    await assert.rejects(leases.take(few, 'b'), hasCode('host-resource', /no port is free: all of 9000–9002/))
    await leases.release(few, 9_001, 'a')
    assert.equal(await leases.take(few, 'b'), 9_001)
  })

  it('leave no file behind but themselves, also when there is nothing to take', async (t) => {
    const folder = await temporaryFolder(t)
    const leases = new Leases(folder)
    const one = { name: 'port', from: 9_000, to: 9_000 } as const
    await leases.take(one, 'a')
    await assert.rejects(leases.take(one, 'b'))
    assert.deepEqual(await readdir(path.join(folder, 'port')), ['9000'])
  })

  it('are never seen without their owner, and other files are no leases', async (t) => {
    const folder = await temporaryFolder(t)
    const leases = new Leases(folder)
    await leases.take(cidPool, 'a')
    assert.equal(await readFile(path.join(folder, 'cid', '3'), 'utf8'), 'a')
    await writeFile(path.join(folder, 'cid', '.claim-left-by-a-killed-process'), 'x')
    assert.deepEqual(await leases.list(cidPool), [{ number: 3, owner: 'a' }])
  })

  it('are never given twice, however many processes take them at once', async (t) => {
    const folder = await temporaryFolder(t)
    const code = `
      const { Leases, cidPool, portPool } = await import(url('./lease.js'))
      const [folder, name] = args
      const leases = new Leases(folder)
      const taken = []
      for (let round = 0; round < 50; round++) {
        const owner = name + '-' + round
        const [cid, port] = await Promise.all([leases.take(cidPool, owner), leases.take(portPool, owner)])
        taken.push({ owner, cid, port })
        if (round % 5 === 0) { // given back in between, so that numbers change hands
          const { owner, cid, port } = taken.shift()
          await leases.release(cidPool, cid, owner)
          await leases.release(portPool, port, owner)
        }
      }
      console.log(JSON.stringify(taken))`
    const processes = ['p', 'q', 'r', 's'].map((name) => runModule(t, import.meta.url, code, [folder, name]))
    const outputs = await Promise.all(processes.map(({ done }) => done))
    const taken = outputs.flatMap((output) => JSON.parse(output) as { owner: string; cid: number; port: number }[])
    assert.equal(taken.length, 160)
    assert.equal(new Set(taken.map(({ cid }) => cid)).size, 160)
    assert.equal(new Set(taken.map(({ port }) => port)).size, 160)
    const leases = new Leases(folder)
    for (const pool of [cidPool, portPool]) {
      const held = new Map((await leases.list(pool)).map(({ number, owner }) => [number, owner]))
      assert.equal(held.size, 160)
      for (const { owner, cid, port } of taken) assert.equal(held.get(pool === cidPool ? cid : port), owner)
    }
    for (const { owner, cid, port } of taken) {
      await leases.release(cidPool, cid, owner)
      await leases.release(portPool, port, owner)
    }
    assert.deepEqual([await readdir(path.join(folder, 'cid')), await readdir(path.join(folder, 'port'))], [[], []])
  })
})
