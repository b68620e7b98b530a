/** A registry of a test's own with one image, which answers as the test wants. */
import type { ServerResponse } from 'node:http'
import type { TestScope } from '../../../../testing/temporary-folder.js'
import { type AskedRequest, digestOf, json, serve, type TestServer } from './server.js'

export const INDEX_TYPE = 'application/vnd.oci.image.index.v1+json'
export const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json'

export const layer = Buffer.from('0123456789'.repeat(100))
export const layerDescriptor = {
  mediaType: 'application/vnd.oci.image.layer.v1.tar',
  digest: digestOf(layer),
  size: layer.length,
}
export const manifest = JSON.stringify({ schemaVersion: 2, mediaType: MANIFEST_TYPE, layers: [layerDescriptor] })
export const manifestDescriptor = { mediaType: MANIFEST_TYPE, digest: digestOf(manifest), size: manifest.length }
export const index = JSON.stringify({ schemaVersion: 2, manifests: [manifestDescriptor] })

/** @returns True when it has answered. */
export type Intercept = (request: AskedRequest, response: ServerResponse) => boolean

/** It has the image `a/b:1`; `intercept` comes first. */
export async function serveRegistry(
  t: TestScope,
  intercept: Intercept = () => false,
  tls?: { key: string; cert: string },
): Promise<TestServer> {
  return serve(
    t,
    (request, response) => {
      if (!intercept(request, response)) answer(request, response)
    },
    tls,
  )
}

function answer({ path }: AskedRequest, response: ServerResponse): void {
  const send = (type: string, body: string | Buffer, headers: Record<string, string> = {}) =>
    response.writeHead(200, { 'content-type': type, 'content-length': body.length, ...headers }).end(body)
  switch (path.replace(/^\/v2\/(.*\/)?a\/b\//, '')) {
    case 'manifests/1':
    case `manifests/${digestOf(index)}`:
      return void send(INDEX_TYPE, index, { 'docker-content-digest': digestOf(index) })
    case `manifests/${manifestDescriptor.digest}`:
      return void send(MANIFEST_TYPE, manifest)
    case `blobs/${layerDescriptor.digest}`:
      return void send('application/octet-stream', layer)
    default:
      json(response, 404, { errors: [{ code: 'MANIFEST_UNKNOWN', message: 'manifest unknown' }] })
  }
}
