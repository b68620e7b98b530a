/** What is waited for when the links to a guest are lost, and for how long. */
import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { identify, identifySelf } from '../process/identity.js'
import { Database } from '../store/database.js'
import { sampleRecord } from '../testing/sample-record.js'
import type { TestScope } from '../testing/temporary-folder.js'
import { type TestHost, testHost } from '../testing/test-host.js'
import { qemuDriver } from '../vmm/qemu/qemu.js'
import { recover } from './recover.js'

const ID = 'sbx_aaaaaaaaaa'
const since = '2026-01-01T00:00:00.000Z'
const NOT_YET = 'not yet'
/** Several times what it sleeps between two looks. */
const WHILE_MS = 200

class Scene {
  readonly host: TestHost
  readonly #directory: string

  constructor(host: TestHost) {
    this.host = host
    this.#directory = host.store.directoryOf(ID)
  }

  /** A sandbox that runs: this process stands for its shim and its VMM. */
  static async of(t: TestScope, operation: string | undefined): Promise<Scene> {
    const host = await testHost(t, { shimPath: '/none', vmm: qemuDriver({ shim: '/none', searchPath: [] }) })
    const claim = await host.store.insert(sampleRecord({ id: ID, state: { kind: 'creating', since } }))
    await host.store.makeDirectory(ID)
    await host.store.takeNumbers(ID)
    await host.store.transition(ID, { state: { kind: 'running', since } })
    await claim.release()
    const scene = new Scene(host)
    await scene.setOperation(operation)
    const self = await identify(process.pid)
    await scene.#write('run.json', { shim: self, vmm: self, startedAt: since })
    await scene.machineIs('running')
    return scene
  }

  async setOperation(name: string | undefined): Promise<void> {
    const database = await Database.open(path.join(this.host.store.root, 'bandsox.db'))
    const holder = JSON.stringify(await identifySelf())
    await database.write((tables) =>
      name === undefined
        ? tables.change(
            'UPDATE sandboxes SET operation = NULL, operation_since = NULL, operation_token = NULL, holder = NULL WHERE id = $id',
            { id: ID },
          )
        : tables.change(
            `UPDATE sandboxes SET operation = $name, operation_since = $since, operation_token = 'ours', holder = $holder WHERE id = $id`,
            { id: ID, name, since, holder },
          ),
    )
    database.close()
  }

  async machineIs(status: string): Promise<void> {
    await this.#write('machine.json', { status, since })
  }

  recovered(signal?: AbortSignal): Promise<string> {
    return recover(this.host, ID, signal)
  }

  async #write(name: string, content: object): Promise<void> {
    await writeFile(path.join(this.#directory, name), JSON.stringify(content))
  }
}

const within = (answer: Promise<string>, ms: number) => Promise.race([answer, delay(ms, NOT_YET)])

describe('a guest whose links are lost', () => {
  it('is as it was when nobody does anything with it', async (t) => {
    assert.equal(await (await Scene.of(t, undefined)).recovered(), 'unchanged')
    assert.equal(await (await Scene.of(t, 'update')).recovered(), 'unchanged')
  })

  for (const operation of ['snapshot', 'fork', 'commit', 'cleanup after snapshot'])
    it(`is waited for while it stands still for ${operation}, and no longer`, async (t) => {
      const scene = await Scene.of(t, operation)
      assert.equal(await scene.recovered(), 'held', 'the moment is over, or still to come')
      await scene.machineIs('paused')
      const answer = scene.recovered()
      assert.equal(await within(answer, WHILE_MS), NOT_YET)
      await scene.machineIs('running')
      assert.equal(await answer, 'held')
    })

  for (const operation of ['pause', 'resume', 'hibernate', 'cleanup after hibernate'])
    it(`is waited for until ${operation} is over`, async (t) => {
      const scene = await Scene.of(t, operation)
      const answer = scene.recovered()
      assert.equal(await within(answer, WHILE_MS), NOT_YET)
      await scene.setOperation(undefined)
      assert.equal(await answer, 'mended')
    })

  it('is not waited for by who gives up', async (t) => {
    const scene = await Scene.of(t, 'pause')
    const reason = new Error('enough')
    await assert.rejects(scene.recovered(AbortSignal.timeout(20)), { name: 'TimeoutError' })
    await assert.rejects(scene.recovered(AbortSignal.abort(reason)), (error) => error === reason)
  })
})
