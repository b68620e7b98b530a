/** Images: what a sandbox's disk is made from, by reference, and what is told while one is fetched. */

/** `missing`: only what is not there; `always`: ask whether the reference has moved; `never`: no network. */
export type PullPolicy = 'missing' | 'always' | 'never'

export interface RegistryCredentials {
  username: string
  password: string
}

/** What an OCI image configuration says about running its command. See OCI image-spec, config.md. */
export interface ImageConfig {
  /** `NAME=value` each. */
  env: string[]
  /** `name`, `uid`, `name:group` or `uid:gid`; empty: root. */
  user: string
  workingDir: string
  entrypoint: string[]
  cmd: string[]
  /** Such as `SIGQUIT`; empty: SIGTERM. */
  stopSignal: string
  labels: Record<string, string>
  /** Such as `80/tcp`. */
  exposedPorts: string[]
}

export interface ImageInfo {
  /** `sha256:` and the digest of the image's configuration, the same in every registry. */
  id: string
  /** References that mean it on this host, such as `docker.io/library/alpine:latest`; none: only its id does. */
  references: string[]
  /** Digest of the manifest that it was pulled by. */
  digest: string
  /** Such as `linux/amd64`. */
  platform: string
  config: ImageConfig
  /** From the top of the manifest down the list: the lowest first. */
  layers: { digest: string; sizeBytes: number }[]
  /** Bytes of its disk on this host; images with the same layers share one. */
  diskBytes: number
  /** Bytes of its layers as they are kept for the next image and for export; 0 when they were pruned. */
  layerBytes: number
  /** When it was published, if it says so. */
  createdAt: string | undefined
  pulledAt: string
  lastUsedAt: string
  /** Ids of the sandboxes that were made from it. */
  usedBy: string[]
}

/** What happens while an image is fetched and its disk is made. */
export type ImageEvent =
  /** What takes time before anything of the image is known: `unpacking /tmp/image.tar.gz`, `saving app:1 from docker`. */
  | { kind: 'preparing'; what: string }
  | { kind: 'resolving'; reference: string }
  /** What the reference means now. `layers` are all of them, the lowest first. */
  | { kind: 'resolved'; reference: string; digest: string; layers: { digest: string; sizeBytes: number }[] }
  /** The reference means another image than when it was last asked. Digests of manifests or indexes. */
  | { kind: 'moved'; reference: string; from: string; to: string }
  /** `present`: it was there already. `downloading`: `bytes` of `totalBytes` have come. `ready`: verified, whole. */
  | { kind: 'layer'; digest: string; phase: 'downloading' | 'present' | 'ready'; bytes: number; totalBytes: number }
  /** Bytes of file contents that went into the disk; the total is known once every layer was read. */
  | { kind: 'disk'; phase: 'writing' | 'ready'; bytes: number }
  /** Another process works on the same; this one waits for it. */
  | { kind: 'waiting'; what: string; pid: number }
  /** A sandbox that is committed has stood still, and goes on. */
  | { kind: 'stood-still'; sandbox: string; pauseMs: number }
  /** Something was left out or is odd, and the image works all the same. */
  | { kind: 'warning'; message: string }
  /** Another image was removed, to keep to the configured size. */
  | { kind: 'evicted'; references: string[]; id: string }

export interface PullOptions {
  /** `os/architecture[/variant]`. Default: the host's. */
  platform?: string
  /** Default `always`. */
  pull?: PullPolicy
  /** Default: what `bandsox login`, `docker login` and `podman login` have stored. */
  credentials?: RegistryCredentials
  onEvent?: (event: ImageEvent) => void
  signal?: AbortSignal
}

/** What an image made from a sandbox says of itself; all else is as in the sandbox's image. */
export interface CommitOptions {
  /** For its history. */
  message?: string
  author?: string
  /** Variables that are added, or get another value. */
  env?: Record<string, string>
  cmd?: string[]
  entrypoint?: string[]
  user?: string
  /** An absolute path. */
  workingDir?: string
  onEvent?: (event: ImageEvent) => void
  signal?: AbortSignal
}

/** What was freed. */
export interface PruneResult {
  /** Ids of removed images. */
  images: string[]
  freedBytes: number
}

/** The images of one host. */
export interface Images {
  /**
   * Fetches an image and makes its disk, unless both are there.
   *
   * @param reference Of a registry (`alpine`, `ghcr.io/owner/name:tag`, `name@sha256:…`), or `oci:FOLDER[:TAG]`, `oci-archive:FILE`,
   *   `docker-archive:FILE`, `docker-daemon:NAME`, `podman:NAME`, `rootfs:FILE`; `bandsox/base` is built in.
   * @returns The image; `changed` is false when there was nothing to do.
   */
  pull(reference: string, options?: PullOptions): Promise<{ image: ImageInfo; changed: boolean }>
  /** Takes an image from a file or a folder, whose kind is found by looking, and gives it a reference. */
  import(path: string, options?: PullOptions & { reference?: string }): Promise<{ image: ImageInfo; changed: boolean }>
  /** Gives an image another name; a name that another image has goes over to this one. */
  tag(image: string, reference: string): Promise<void>
  /** Writes an OCI layout: a folder, or a tar when `path` ends in `.tar`. */
  export(image: string, path: string, options?: { signal?: AbortSignal }): Promise<void>
  /**
   * Makes an image of a sandbox, or of a snapshot: its image's layers, and one with what the sandbox has changed. A machine of its own
   * reads the disk. A sandbox that runs stands still while its disk is copied, as for a snapshot (an event says how long), and goes on.
   *
   * @param source Id, name or unique id prefix of a sandbox; else of a snapshot.
   * @param reference Gets the image; one that another image has goes over to this one.
   * @throws `wrong-state`, `not-found`, `image-not-found` when the sandbox's image was removed; `hook-failed`, `no-space`,
   *   `snapshot-damaged`; what starting a machine throws.
   */
  commit(source: string, reference: string, options?: CommitOptions): Promise<{ image: ImageInfo; changed: boolean }>
  /** By reference, id or unique id prefix. @throws `image-not-found`. */
  get(image: string): Promise<ImageInfo>
  list(): Promise<ImageInfo[]>
  /**
   * Removes a reference, and the image with its last one.
   * @throws `image-in-use` when a sandbox was made from it, unless `force`: a sandbox keeps its own hold on the disk.
   */
  remove(image: string, options?: { force?: boolean }): Promise<PruneResult>
  /** Removes what nothing refers to: unfinished downloads, layers, disks; with `all` also images that no sandbox uses. */
  prune(options?: { all?: boolean; layers?: boolean; olderThanMs?: number }): Promise<PruneResult>
}
