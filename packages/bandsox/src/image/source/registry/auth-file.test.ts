import assert from 'node:assert/strict'
import { readdir, readFile, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../../../testing/errors.js'
import { temporaryFolder } from '../../../testing/temporary-folder.js'
import { entryFor, eraseCredentials, secretOf, storeCredentials } from './auth-file.js'

const base64 = (text: string) => Buffer.from(text).toString('base64')

describe('an entry', () => {
  it('is the most exact one, however its key is written', () => {
    const entries = {
      'https://index.docker.io/v1/': 'hub',
      'ghcr.io': 'host',
      'ghcr.io/owner': 'namespace',
      'ghcr.io/owner/name': 'repository',
      'http://old.example/v2/': 'old',
    }
    assert.equal(entryFor(entries, 'docker.io', 'library/a'), 'hub')
    assert.equal(entryFor(entries, 'ghcr.io', 'other/name'), 'host')
    assert.equal(entryFor(entries, 'ghcr.io', 'owner/other'), 'namespace')
    assert.equal(entryFor(entries, 'ghcr.io', 'owner/name'), 'repository')
    assert.equal(entryFor(entries, 'ghcr.io', 'owner/name/below'), 'repository')
    assert.equal(entryFor(entries, 'old.example', 'a'), 'old')
    assert.equal(entryFor(entries, 'hcr.io', 'a'), undefined)
    assert.equal(entryFor(undefined, 'a.example', 'a'), undefined)
  })

  it('has a password, which may have colons, or an identity token, which wins', () => {
    const password = { kind: 'password', username: 'user', password: 'pass:word' }
    assert.deepEqual(secretOf({ auth: base64('user:pass:word') }), password)
    assert.deepEqual(secretOf({ auth: base64('user:pass:word\0\0') }), password)
    assert.deepEqual(secretOf({ username: 'user', password: 'pass:word' }), password)
    assert.deepEqual(secretOf({ auth: base64('0000:'), identitytoken: 'T' }), { kind: 'identity-token', token: 'T' })
    for (const nothing of [{}, null, { auth: '' }, { auth: base64('nocolon') }, { auth: '!!' }])
      assert.equal(secretOf(nothing), undefined)
  })
})

describe('our own file of credentials', () => {
  it('is made with its folder, is readable by its owner alone, and has the shape of Docker’s', async (t) => {
    const file = path.join(await temporaryFolder(t), 'new', 'auth.json')
    await storeCredentials(file, 'docker.io', { username: 'me', password: 'first' })
    await storeCredentials(file, 'localhost:5000', { username: 'you', password: 'pä:ss' })
    await storeCredentials(file, 'docker.io', { username: 'me', password: 'second' })
    assert.deepEqual(JSON.parse(await readFile(file, 'utf8')), {
      auths: {
        'https://index.docker.io/v1/': { auth: base64('me:second') },
        'localhost:5000': { auth: base64('you:pä:ss') },
      },
    })
    assert.equal((await stat(file)).mode & 0o777, 0o600)
    assert.equal((await stat(path.dirname(file))).mode & 0o777, 0o700)
    assert.deepEqual(await readdir(path.dirname(file)), ['auth.json'])
  })

  it('keeps what it does not know', async (t) => {
    const file = path.join(await temporaryFolder(t), 'auth.json')
    const others = { auths: { 'a.example': { auth: 'eDp5', email: 'x' } }, HttpHeaders: { a: 'b' } }
    await writeFile(file, JSON.stringify(others))
    await storeCredentials(file, 'b.example', { username: 'u', password: 'p' })
    assert.equal(await eraseCredentials(file, 'b.example'), true)
    assert.deepEqual(JSON.parse(await readFile(file, 'utf8')), others)
  })

  it('loses an entry once, under any of its names', async (t) => {
    const file = path.join(await temporaryFolder(t), 'auth.json')
    assert.equal(await eraseCredentials(file, 'docker.io'), false)
    await writeFile(
      file,
      JSON.stringify({ auths: { 'docker.io': { auth: 'eDp5' }, 'https://index.docker.io/v1/': {} } }),
    )
    assert.equal(await eraseCredentials(file, 'docker.io'), true)
    assert.equal(await eraseCredentials(file, 'docker.io'), false)
    assert.deepEqual(JSON.parse(await readFile(file, 'utf8')), { auths: {} })
  })

  it('is not overwritten when it is damaged', async (t) => {
    const file = path.join(await temporaryFolder(t), 'auth.json')
    await writeFile(file, '{"auths": ')
    const storing = storeCredentials(file, 'a.example', { username: 'u', password: 'p' })
    await assert.rejects(storing, hasCode('artifact-damaged', /auth\.json/))
    assert.equal(await readFile(file, 'utf8'), '{"auths": ')
  })

  it('takes no credentials that it could not give back', async (t) => {
    const file = path.join(await temporaryFolder(t), 'auth.json')
    for (const [registry, username] of [
      ['a.example', 'with:colon'],
      ['a.example', ''],
      ['https://a.example', 'me'],
      ['', 'me'],
    ] as const)
      await assert.rejects(storeCredentials(file, registry, { username, password: 'p' }), hasCode('bad-request'))
    assert.deepEqual(await readdir(path.dirname(file)), [])
  })
})
