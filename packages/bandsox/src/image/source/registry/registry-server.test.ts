/** Against Debian's docker-registry, filled by skopeo: what other programs of the protocol really send. */
import assert from 'node:assert/strict'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { access, mkdir, writeFile } from 'node:fs/promises'
import { type AddressInfo, createServer } from 'node:net'
import path from 'node:path'
import { buffer } from 'node:stream/consumers'
import { describe, it } from 'node:test'
import { promisify } from 'node:util'
import { gzipSync } from 'node:zlib'
import { hasCode } from '../../../testing/errors.js'
import { type TestScope, temporaryFolder } from '../../../testing/temporary-folder.js'
import { parseRegistryReference } from '../reference.js'
import { eraseCredentials, storeCredentials } from './auth-file.js'
import { openRegistry, type RegistryOptions } from './registry.js'
import { registryConfigSchema } from './registry-config.js'
import { digestOf } from './testing/server.js'

const run = promisify(execFile)

const REGISTRY = '/usr/bin/docker-registry'
const SKOPEO = '/usr/bin/skopeo'

/** bcrypt of `secret`, made with Python's crypt.crypt('secret', crypt.mksalt(crypt.METHOD_BLOWFISH)), as htpasswd writes it. */
const HTPASSWD = 'me:$2b$05$L2l.ohGmmVpNOaYl65Nm7.3lwiOBoKFKTGSRyfspICoXhcH84BfI2\n'

const missing: string[] = []
for (const program of [REGISTRY, SKOPEO]) {
  await access(program).catch(() => missing.push(program)) // not there, or not for us: the skip says which
}
const skip = missing.length > 0 && `not installed: ${missing.join(' ')}`

const layer = gzipSync(Buffer.alloc(100_000, 'layer'))
const config = JSON.stringify({
  architecture: 'amd64',
  os: 'linux',
  config: {},
  rootfs: { type: 'layers', diff_ids: [] },
})

/** An OCI layout with one image of one layer. @returns The folder, and the descriptors of what is in it. */
async function writeLayout(folder: string) {
  const layout = path.join(folder, 'layout')
  await mkdir(path.join(layout, 'blobs/sha256'), { recursive: true })
  const blob = async (mediaType: string, content: string | Buffer) => {
    const digest = digestOf(content)
    await writeFile(path.join(layout, 'blobs', digest.replace(':', '/')), content)
    return { mediaType, digest, size: content.length }
  }
  const layerDescriptor = await blob('application/vnd.oci.image.layer.v1.tar+gzip', layer)
  const manifest = JSON.stringify({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: await blob('application/vnd.oci.image.config.v1+json', config),
    layers: [layerDescriptor],
  })
  const descriptor = await blob('application/vnd.oci.image.manifest.v1+json', manifest)
  await writeFile(path.join(layout, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}')
  await writeFile(path.join(layout, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [descriptor] }))
  return { layout, layerDescriptor, manifest }
}

/** Starts a registry that holds the image `team/tiny:1`. */
async function startRegistry(t: TestScope, { withPassword }: { withPassword: boolean }) {
  const folder = await temporaryFolder(t)
  const image = await writeLayout(folder)
  const host = `127.0.0.1:${await freePort()}`
  const auth = withPassword ? `auth: {htpasswd: {realm: test, path: ${folder}/htpasswd}}\n` : ''
  await writeFile(path.join(folder, 'htpasswd'), HTPASSWD)
  await writeFile(
    path.join(folder, 'config.yml'),
    `version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: ${folder}/data}}\nhttp: {addr: ${host}}\n${auth}`,
  )
  const registry = spawn(REGISTRY, ['serve', path.join(folder, 'config.yml')], { stdio: ['ignore', 'ignore', 'pipe'] })
  t.after(async () => {
    registry.kill('SIGKILL')
    if (registry.exitCode === null && registry.signalCode === null) await once(registry, 'exit')
  })
  await saysThatItListens(registry)
  const argv = [
    'copy',
    '--insecure-policy',
    '--dest-tls-verify=false',
    '--dest-authfile',
    path.join(folder, 'none.json'),
  ]
  if (withPassword) argv.splice(3, 2, '--dest-creds', 'me:secret')
  await run(SKOPEO, [...argv, `oci:${image.layout}`, `docker://${host}/team/tiny:1`])
  return { host, folder, ...image }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  await once(server.close(), 'close')
  return port
}

async function saysThatItListens(registry: ChildProcess): Promise<void> {
  let said = ''
  await new Promise<void>((resolve, reject) => {
    // Read to its end: the registry would die of a closed pipe.
    registry.stderr?.on('data', (chunk) => {
      said += String(chunk)
      if (said.includes('listening on')) resolve()
    })
    registry.once('exit', () => reject(new Error(`docker-registry ended: ${said}`)))
  })
}

async function open(t: TestScope, name: string, options: Partial<RegistryOptions> = {}) {
  const source = await openRegistry({
    reference: parseRegistryReference(name),
    config: registryConfigSchema.parse({}),
    credentialSources: { files: [], environment: {} },
    ...options,
  })
  t.after(() => source.close())
  return source
}

describe('docker-registry', { skip, timeout: 30_000 }, () => {
  it('delivers an image that skopeo pushed, whole and from an offset', async (t) => {
    const { host, layerDescriptor, manifest } = await startRegistry(t, { withPassword: false })
    const source = await open(t, `${host}/team/tiny:1`)
    const root = await source.root()
    assert.equal(root.bytes.toString(), manifest)
    assert.equal(root.mediaType, 'application/vnd.oci.image.manifest.v1+json')
    assert.equal(await source.digest(), digestOf(manifest))
    const whole = await source.openBlob(layerDescriptor, 0)
    assert.deepEqual([whole.startsAt, await buffer(whole.stream)], [0, layer])
    const rest = await source.openBlob(layerDescriptor, 100)
    assert.deepEqual([rest.startsAt, await buffer(rest.stream)], [100, layer.subarray(100)])
    const pinned = await open(t, `${host}/team/tiny@${root.digest}`)
    assert.deepEqual(await pinned.root(), root)
    const none = await open(t, `${host}/team/tiny:none`)
    await assert.rejects(none.root(), hasCode('image-not-found', /team\/tiny:none: .*"manifest unknown"/))
    await assert.rejects(none.digest(), hasCode('image-not-found'))
    const unknown = { ...layerDescriptor, digest: digestOf('unknown') }
    await assert.rejects(source.openBlob(unknown, 0), hasCode('image-not-found', /"blob unknown to registry"/))
  })

  it('with a password gives nothing to strangers, and the image to who has logged in', async (t) => {
    const { host, folder, manifest } = await startRegistry(t, { withPassword: true })
    const file = path.join(folder, 'auth.json')
    const credentialSources = { files: [file], environment: {} }
    const stranger = await open(t, `${host}/team/tiny:1`, { credentialSources })
    await assert.rejects(stranger.root(), hasCode('registry-unauthorized', /"authentication required"; asked without/))
    await storeCredentials(file, host, { username: 'me', password: 'secret' })
    const friend = await open(t, `${host}/team/tiny:1`, { credentialSources })
    assert.equal((await friend.root()).digest, digestOf(manifest))
    assert.equal(await eraseCredentials(file, host), true)
    const again = await open(t, `${host}/team/tiny:1`, { credentialSources })
    await assert.rejects(again.root(), hasCode('registry-unauthorized'))
    const wrong = await open(t, `${host}/team/tiny:1`, { credentials: { username: 'me', password: 'wrong' } })
    await assert.rejects(wrong.root(), hasCode('registry-unauthorized', /asked as me/))
  })
})
