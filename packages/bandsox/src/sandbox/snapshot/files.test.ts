import assert from 'node:assert/strict'
import { rm, truncate, utimes, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { nativeProgram } from '../../testing/native-program.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { testHost } from '../../testing/test-host.js'
import { qemuDriver } from '../../vmm/qemu/qemu.js'
import { checkFiles, recordFiles } from './files.js'

const names = ['memory', 'devices']
const LONG_AGO = new Date(1_000_000_000_000)

async function recorded(t: TestScope) {
  const shim = nativeProgram('bandsox-shim')
  const host = await testHost(t, { shimPath: shim, vmm: qemuDriver({ shim, searchPath: [] }) })
  const folder = await temporaryFolder(t)
  await writeFile(path.join(folder, 'memory'), 'content')
  await truncate(path.join(folder, 'memory'), 1024 * 1024)
  await writeFile(path.join(folder, 'devices'), 'more')
  for (const name of names) await utimes(path.join(folder, name), LONG_AGO, LONG_AGO)
  const { files, seals } = await recordFiles(host, folder, names)
  const check = (options = {}, known = seals) =>
    checkFiles(host, { folder, title: 'snapshot snp_a', hint: 'a remedy' }, files, known, options)
  return { at: (name: string) => path.join(folder, name), files, seals, check }
}

describe('files of a snapshot', () => {
  it('are written down with what they take of the disk, and not read again while nobody has touched them', async (t) => {
    const { at, files, seals, check } = await recorded(t)
    assert.deepEqual(
      files.map(({ name, sizeBytes }) => [name, sizeBytes]),
      [
        ['memory', 1024 * 1024],
        ['devices', 4],
      ],
    )
    assert.ok((files[0]?.allocatedBytes ?? 0) < 64 * 1024, 'a hole takes nothing')
    assert.equal(await check(), undefined)
    assert.deepEqual(await check({ all: true }), seals)
    await utimes(at('memory'), new Date(), new Date())
    const now = await check()
    assert.notDeepEqual(now, seals)
    assert.equal(await check({}, now), undefined, 'what was read is known again')
    assert.deepEqual(Object.keys((await check({}, {})) ?? {}), names, 'what nobody has sealed is read')
  })

  it('are named when one is changed, cut short, longer, or gone', async (t) => {
    const { at, check } = await recorded(t)
    const isNamed = (message: RegExp) => (error: Error & { hint?: string }) => {
      assert.equal(error.hint, 'a remedy')
      return hasCode('snapshot-damaged', message)(error)
    }
    await writeFile(at('devices'), 'mor3')
    await assert.rejects(check(), isNamed(/^devices of snapshot snp_a has the digest \w{64} instead of \w{64}$/))
    await utimes(at('devices'), LONG_AGO, LONG_AGO)
    await assert.rejects(check({ all: true }), isNamed(/^devices of/))
    await writeFile(at('devices'), 'mo')
    await assert.rejects(check(), isNamed(/has 2 bytes instead of 4/))
    await writeFile(at('devices'), 'more and more')
    await assert.rejects(check(), isNamed(/has 13 bytes instead of 4/))
    await rm(at('devices'))
    await assert.rejects(check(), isNamed(/is missing/))
  })

  it('are read no further when nobody waits for it', async (t) => {
    const { check } = await recorded(t)
    const signal = AbortSignal.abort(new Error('enough'))
    await assert.rejects(check({ all: true, signal }), { message: 'enough' })
  })
})
