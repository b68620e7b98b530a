/** A release of Firecracker as the project publishes it, with programs that are scripts: they tell their version. */
import { createHash } from 'node:crypto'
import { file, folder, gzip, tar } from '../../../image/testing/tar-builder.js'
import { seededRandom } from '../../../testing/random.js'

export const machine = process.arch === 'arm64' ? 'aarch64' : 'x86_64'
export const sha256Of = (bytes: Buffer | string): string => createHash('sha256').update(bytes).digest('hex')

export interface Release {
  /** `firecracker-v1.16.1-x86_64.tgz` */
  name: string
  archive: Buffer
  sha256: string
  /** As the project publishes it beside the archive. */
  checksum: string
  firecracker: Buffer
  jailer: Buffer
}

/** As large as an archive must be for a download that can be interrupted. */
const DEBUG_BYTES = 400_000

export function release(version = '1.16.1', { hasJailer = true, salt = '' } = {}): Release {
  const suffix = `v${version}-${machine}`
  const name = `firecracker-${suffix}.tgz`
  const program = (what: string) => Buffer.from(`#!/bin/sh\necho "${what} v${version}"\n# ${salt}\n`)
  const [firecracker, jailer] = [program('Firecracker'), program('Jailer')]
  const root = `release-${suffix}`
  const archive = gzip(
    tar(
      folder(`${root}/`),
      file(`${root}/firecracker-${suffix}.debug`, seededRandom(version.length).bytes(DEBUG_BYTES)),
      file(`${root}/firecracker-${suffix}`, firecracker, { mode: 0o755 }),
      ...(hasJailer ? [file(`${root}/jailer-${suffix}`, jailer, { mode: 0o755 })] : []),
      file(`${root}/SHA256SUMS`, 'sums'),
    ),
  )
  const sha256 = sha256Of(archive)
  return { name, archive, sha256, checksum: `${sha256}  ${name}\n`, firecracker, jailer }
}

/** What a server, or a folder, of releases has. */
export const published = ({ name, archive, checksum }: Release, folderName = ''): Record<string, Buffer> => ({
  [`${folderName}/${name}`]: archive,
  [`${folderName}/${name}.sha256.txt`]: Buffer.from(checksum),
})
