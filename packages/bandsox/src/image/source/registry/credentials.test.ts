import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { type TestScope, temporaryFolder } from '../../../testing/temporary-folder.js'
import { describeSearch, findCredentials } from './credentials.js'

const signal = new AbortController().signal
const auth = (text: string) => ({ auth: Buffer.from(text).toString('base64') })

/** Writes files of credentials, and helpers (shell scripts by name) into a folder that is the whole PATH beside /bin. */
async function place(t: TestScope, files: unknown[], helpers: Record<string, string> = {}) {
  const folder = await temporaryFolder(t)
  const paths: string[] = []
  for (const [index, content] of files.entries()) {
    const file = path.join(folder, `${index}.json`)
    if (content !== undefined) await writeFile(file, typeof content === 'string' ? content : JSON.stringify(content))
    paths.push(file)
  }
  for (const [name, script] of Object.entries(helpers))
    await writeFile(path.join(folder, `docker-credential-${name}`), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  return { folder, sources: { files: paths, environment: { PATH: `${folder}:/usr/bin:/bin` } } }
}

const reply = (username: string, secret: string) =>
  `cat >/dev/null; echo '${JSON.stringify({ ServerURL: 'x', Username: username, Secret: secret })}'`

describe('the search for credentials', () => {
  it('takes the first file that has some, and says which', async (t) => {
    const { sources } = await place(t, [
      undefined,
      { auths: { 'other.example': auth('no:no') } },
      { auths: { 'a.example': auth('me:secret') } },
      { auths: { 'a.example': auth('late:late') } },
    ])
    const search = await findCredentials('a.example', 'x', sources, signal)
    assert.deepEqual(search, {
      found: { kind: 'password', username: 'me', password: 'secret', from: sources.files[2] },
      problems: [],
    })
    assert.equal(describeSearch(search), `asked as me, with the password from ${sources.files[2]}`)
  })

  it('finds none without a file, and says so', async (t) => {
    const { sources } = await place(t, [undefined])
    const search = await findCredentials('a.example', 'x', sources, signal)
    assert.deepEqual(search, { found: undefined, problems: [] })
    assert.match(describeSearch(search), /without credentials/)
  })

  it('asks the helper of the registry, by the name that helpers know', async (t) => {
    const { folder, sources } = await place(
      t,
      [{ credHelpers: { 'a.example': 'one' }, credsStore: 'all', auths: { 'a.example': auth('old:old') } }],
      {
        one: `printf '%s %s' "$1" "$(cat)" > "$(dirname "$0")/one.asked"; echo '{"Username":"me","Secret":"s"}'`,
        all: `printf '%s %s' "$1" "$(cat)" > "$(dirname "$0")/all.asked"; echo '{"Username":"<token>","Secret":"T"}'`,
      },
    )
    const one = await findCredentials('a.example', 'x', sources, signal)
    assert.deepEqual(one.found, { kind: 'password', username: 'me', password: 's', from: 'docker-credential-one' })
    assert.equal(await readFile(path.join(folder, 'one.asked'), 'utf8'), 'get a.example')
    const all = await findCredentials('docker.io', 'library/x', sources, signal)
    assert.deepEqual(all.found, { kind: 'identity-token', token: 'T', from: 'docker-credential-all' })
    assert.equal(await readFile(path.join(folder, 'all.asked'), 'utf8'), 'get https://index.docker.io/v1/')
  })

  it('goes on where a helper has none', async (t) => {
    const { sources } = await place(
      t,
      [{ credsStore: 'none' }, { credsStore: 'empty' }, { auths: { 'a.example': auth('me:s') } }],
      {
        none: `cat >/dev/null; echo 'credentials not found in native keychain'; exit 1`,
        empty: reply('', ''),
      },
    )
    const { found, problems } = await findCredentials('a.example', 'x', sources, signal)
    assert.equal(found?.from, sources.files[2])
    assert.deepEqual(problems, [])
  })

  it('goes on where a file or a helper is of no use, and tells every one of them', async (t) => {
    const { sources } = await place(
      t,
      [
        '{',
        { auths: [] },
        { credsStore: 'missing' },
        { credsStore: '../x' },
        { credsStore: 'fails' },
        { credsStore: 'odd' },
      ],
      { fails: `echo 'the keychain is locked' >&2; exit 1`, odd: 'echo secret' },
    )
    const search = await findCredentials('a.example', 'x', sources, signal)
    assert.equal(search.found, undefined)
    assert.equal(search.problems.length, 6)
    const said = describeSearch(search)
    for (const part of [/0\.json is damaged/, /1\.json is damaged/, /docker-credential-missing is not installed/])
      assert.match(said, part)
    for (const part of [/"\.\.\/x" is no credential helper/, /the keychain is locked/, /odd printed no JSON/])
      assert.match(said, part)
    assert.doesNotMatch(said, /secret/)
  })

  it('quotes nothing of what a failing helper prints where the secret stands', async (t) => {
    const { sources } = await place(t, [{ credsStore: 'prints' }, { credsStore: 'says' }], {
      prints: `${reply('me', 'secret')}; exit 3`,
      says: `${reply('me', 'secret')}; echo 'cannot lock the keychain' >&2; exit 3`,
    })
    const { found, problems } = await findCredentials('a.example', 'x', sources, signal)
    assert.equal(found, undefined)
    assert.match(problems[0] ?? '', /docker-credential-prints get exited with 3: its standard output is not shown/)
    assert.match(problems[1] ?? '', /docker-credential-says get exited with 3: cannot lock the keychain$/)
    assert.doesNotMatch(problems.join(), /secret"/)
  })

  it('ends with its signal, and its helper with it', { timeout: 10_000 }, async (t) => {
    // It runs once the file is there, which is put in place whole.
    const { folder, sources } = await place(t, [{ credsStore: 'hangs' }], {
      hangs: `echo $$ > "$(dirname "$0")/started.tmp"; mv "$(dirname "$0")/started.tmp" "$(dirname "$0")/started"; exec sleep 1000`,
    })
    const aborting = new AbortController()
    const searching = findCredentials('a.example', 'x', sources, aborting.signal)
    const pid = await eventually(() => readFile(path.join(folder, 'started'), 'utf8'))
    aborting.abort(new Error('enough'))
    await assert.rejects(searching, /enough/)
    await eventually(async () => assert.throws(() => process.kill(Number(pid), 0), { code: 'ESRCH' }))
  })
})

/** Asks again until it does not throw; the time limit of the test ends it. */
async function eventually<T>(ask: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await ask()
    } catch {
      await new Promise((resolve) => setImmediate(resolve))
    }
  }
}
