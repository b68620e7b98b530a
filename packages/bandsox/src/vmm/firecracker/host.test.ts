import assert from 'node:assert/strict'
import { chmod, copyFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { elfFile } from '../../artifact/elf.fixture.js'
import type { Privilege } from '../../process/privileges.js'
import { hasCode } from '../../testing/errors.js'
import { scriptProgram } from '../../testing/script-program.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { chooseJail, type FoundFirecracker, findFirecracker, firecrackerFinder, type JailerMode } from './host.js'

const FIRECRACKER = 'echo Firecracker v1.16.1'

describe('Firecracker on this host', () => {
  it('is where a user says, else in the search path, with its jailer or without', async (t) => {
    const one = await scriptProgram(t, 'firecracker', FIRECRACKER)
    const other = await scriptProgram(t, 'firecracker', 'echo Firecracker v1.12.0')
    const jailer = await scriptProgram(t, 'jailer', '')
    const searchPath = [path.dirname(one), path.dirname(jailer)]
    assert.deepEqual(await findFirecracker({ shim: '', searchPath }), {
      ...{ program: one, version: '1.16.1', number: [1, 16, 1], jailer },
    })
    const named = { program: other, jailer: '/my/jailer' }
    const found = await findFirecracker({ shim: '', searchPath, firecracker: named })
    assert.deepEqual([found.program, found.version, found.jailer], [other, '1.12.0', '/my/jailer'])
    assert.equal((await findFirecracker({ shim: '', searchPath: [path.dirname(one)] })).jailer, undefined)
  })

  it('is asked for its version once, and again when another is in its place', async (t) => {
    const file = await scriptProgram(t, 'firecracker', FIRECRACKER)
    const find = firecrackerFinder({ shim: '', searchPath: [path.dirname(file)] })
    const first = await find()
    assert.equal(await find(), first)
    await rm(file)
    await writeFile(file, '#!/bin/sh\necho Firecracker v1.17.0\n')
    await chmod(file, 0o755)
    assert.equal((await find()).version, '1.17.0')
  })

  it('that is missing, too old or something else is refused with what helps', async (t) => {
    await assert.rejects(
      findFirecracker({ shim: '', searchPath: ['/no/folder'] }),
      (error: Error & { hint?: string }) =>
        hasCode('host-missing', /firecracker is not installed/)(error) && /bandsox init/.test(error.hint ?? ''),
    )
    await assert.rejects(
      findFirecracker({ shim: '', searchPath: [], firecracker: { program: '/no/firecracker' } }),
      hasCode('host-missing', /there is no firecracker at \/no\/firecracker/),
    )
    for (const [script, says] of [
      ['echo Firecracker v1.5.0', /1\.5\.0 is too old/],
      ['echo hello', /cannot tell Firecracker's version/],
    ] as const) {
      const searchPath = [path.dirname(await scriptProgram(t, 'firecracker', script))]
      await assert.rejects(findFirecracker({ shim: '', searchPath }), hasCode('host-unsupported', says))
    }
    const broken = path.dirname(await scriptProgram(t, 'firecracker', 'echo broken >&2; exit 1'))
    await assert.rejects(findFirecracker({ shim: '', searchPath: [broken] }), hasCode('command-failed', /broken/))
  })
})

describe('the jail', () => {
  const found = { program: '/no/firecracker', version: '1.16.1', number: [1, 16, 1] as const, jailer: '/my/jailer' }
  const choose = (mode: JailerMode, of: FoundFirecracker, isRoot: boolean, missing: readonly Privilege[] = []) =>
    chooseJail(mode, of, isRoot, missing)
  const whyNot = async (...of: Parameters<typeof choose>) => (await choose(...of)).reason ?? ''

  it('is made by root alone, where there is a jailer and a program that needs no libraries', async (t) => {
    const folder = await temporaryFolder(t)
    const script = await scriptProgram(t, 'firecracker', FIRECRACKER)
    const linked = path.join(folder, 'linked')
    await copyFile(process.execPath, linked)
    assert.match(await whyNot('off', found, true), /off/)
    assert.match(await whyNot('auto', found, false), /only root/)
    assert.match(await whyNot('auto', found, true, ['SYS_ADMIN', 'MKNOD']), /lacks CAP_SYS_ADMIN, CAP_MKNOD/)
    assert.match(await whyNot('auto', { ...found, jailer: undefined }, true), /no jailer/)
    assert.match(await whyNot('auto', { ...found, program: script }, true), /needs libraries/)
    assert.match(await whyNot('auto', { ...found, program: linked }, true), /needs libraries/)
    const whole = path.join(folder, 'static')
    await writeFile(whole, elfFile({ segments: [{ type: 1, content: Buffer.from('code') }] }))
    assert.deepEqual(await choose('auto', { ...found, program: whole }, true), { jailer: '/my/jailer' })
    assert.deepEqual(await choose('on', { ...found, program: whole }, true), { jailer: '/my/jailer' })
  })

  it('that must be and cannot is an error that says why and what helps', async () => {
    await assert.rejects(choose('on', found, false), hasCode('host-unsupported', /only root can make a jail/))
    await assert.rejects(
      choose('on', { ...found, jailer: undefined }, true),
      hasCode('host-unsupported', /there is no jailer/),
    )
  })
})
