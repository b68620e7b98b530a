/** OCI images made and unpacked by umoci: what comes out of it is what BandSox is compared with. */
import path from 'node:path'
import { runTool } from './test-tools.js'

/** An image in a folder of the OCI image layout. */
export interface ImageLayout {
  readonly layout: string
  readonly tag: string
}

export interface ImageConfig {
  user?: string
  env?: Record<string, string>
  workdir?: string
  entrypoint?: readonly string[]
  cmd?: readonly string[]
  stopSignal?: string
  labels?: Record<string, string>
  exposedPorts?: readonly string[]
}

const nameOf = ({ layout, tag }: ImageLayout): string => `${layout}:${tag}`

/** Makes a layout with one image that has no layer yet. */
export async function createImage(image: ImageLayout): Promise<void> {
  await runTool(['umoci', 'init', '--layout', image.layout])
  await runTool(['umoci', 'new', '--image', nameOf(image)])
}

/**
 * Unpacks an image with everything in it, for which one has to be root.
 *
 * @param bundle A folder that does not exist yet.
 * @returns Path of the root file system in it.
 */
export async function umociUnpack(image: ImageLayout, bundle: string): Promise<string> {
  await runTool(['umoci', 'unpack', '--image', nameOf(image), bundle])
  return path.join(bundle, 'rootfs')
}

/** Adds a layer with what has changed in an unpacked image since it was unpacked, or packed last. */
export async function addLayer(image: ImageLayout, bundle: string, createdBy: string): Promise<void> {
  await runTool([
    ...['umoci', 'repack', '--refresh-bundle', '--history.created_by', createdBy],
    ...['--image', nameOf(image), bundle],
  ])
}

/**
 * Adds a layer that holds a folder's content as it is, whiteouts among them, packed by tar: umoci's own commands write no
 * opaque ones but for `umoci insert`, whose archives lack their end (umoci 0.4.7).
 */
export async function addLayerAsItIs(image: ImageLayout, folder: string, createdBy: string): Promise<void> {
  const archive = `${folder}.tar`
  await runTool(['tar', '--create', '--file', archive, '--numeric-owner', '--sort=name', '--directory', folder, 'app'])
  await runTool(['umoci', 'raw', 'add-layer', '--history.created_by', createdBy, '--image', nameOf(image), archive])
}

export async function configureImage(image: ImageLayout, config: ImageConfig): Promise<void> {
  const option = (name: string, values: readonly string[]) => values.flatMap((value) => [`--config.${name}`, value])
  const pairs = (values: Record<string, string> = {}) =>
    Object.entries(values).map(([name, value]) => `${name}=${value}`)
  const some = (value: string | undefined) => (value === undefined ? [] : [value])
  await runTool([
    ...['umoci', 'config', '--image', nameOf(image), '--os', 'linux', '--architecture', 'amd64'],
    ...option('user', some(config.user)),
    ...option('env', pairs(config.env)),
    ...option('workingdir', some(config.workdir)),
    ...option('entrypoint', config.entrypoint ?? []),
    ...option('cmd', config.cmd ?? []),
    ...option('stopsignal', some(config.stopSignal)),
    ...option('label', pairs(config.labels)),
    ...option('exposedports', config.exposedPorts ?? []),
  ])
}

/** Removes what no tag leads to: each change of an image leaves its former manifest behind. */
export async function removeUnused(image: ImageLayout): Promise<void> {
  await runTool(['umoci', 'gc', '--layout', image.layout])
}
