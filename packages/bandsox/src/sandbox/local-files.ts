/** Files of a sandbox on this host. */
import {
  BandSoxError,
  type CopyOptions,
  type CopyResult,
  type FileEntry,
  type Files,
  type LinkKind,
  type TransferOptions,
  type TransferResult,
  type WriteOptions,
} from '@bandsox/sdk'
import type { FindAgent } from '../guest/agent.js'
import { download } from '../guest/download.js'
import { listFolder, statFile } from '../guest/inspect.js'
import { upload } from '../guest/upload.js'
import { bytesSource, fileSource, streamSource } from '../guest/upload-source.js'
import { copyIn, tarIn } from './copy/copy-in.js'
import { copyOut, tarOut } from './copy/copy-out.js'
import { HostFileSink, openHostFile } from './host-file.js'

const DEFAULT_READ_LIMIT_BYTES = 64 * 1024 * 1024

export class LocalFiles implements Files {
  readonly #findAgent: FindAgent

  readonly #log: (text: string) => void

  /** @param log Told of each file that was moved, and over which link: operators search for these texts. */
  constructor(findAgent: FindAgent, log: (text: string) => void) {
    this.#findAgent = findAgent
    this.#log = log
  }

  async write(
    path: string,
    content: string | Uint8Array | AsyncIterable<Uint8Array>,
    options?: WriteOptions,
  ): Promise<TransferResult> {
    requireGuestPath(path)
    const bytes = typeof content === 'string' ? Buffer.from(content) : content
    const source = bytes instanceof Uint8Array ? bytesSource(bytes) : streamSource(bytes)
    return this.#uploaded(await upload(await this.#findAgent(options?.signal), path, source, options))
  }

  async read(path: string, options: { maxBytes?: number; signal?: AbortSignal } = {}): Promise<Buffer> {
    requireGuestPath(path)
    const { maxBytes = DEFAULT_READ_LIMIT_BYTES } = options
    const parts: Buffer[] = []
    const sink = {
      async begin({ sizeBytes }: { sizeBytes: number }) {
        if (sizeBytes <= maxBytes) return
        throw new BandSoxError(
          'output-too-large',
          `cannot read ${path} into memory: it has ${sizeBytes} bytes, the limit is ${maxBytes}`,
          {
            hint: 'download it to a file, or raise maxBytes',
          },
        )
      },
      async write(batch: Buffer[]) {
        for (const part of batch) parts.push(part)
      },
      async commit() {
        // In memory there is nothing to make durable.
      },
    }
    await download(await this.#findAgent(options.signal), path, sink, options)
    return Buffer.concat(parts)
  }

  async upload(hostPath: string, guestPath: string, options: WriteOptions = {}): Promise<TransferResult> {
    requireGuestPath(guestPath)
    const { handle, sizeBytes, mode } = await openHostFile(hostPath)
    try {
      const source = fileSource(handle, sizeBytes)
      return this.#uploaded(
        await upload(await this.#findAgent(options.signal), guestPath, source, { mode, ...options }),
      )
    } finally {
      await handle.close()
    }
  }

  async download(guestPath: string, hostPath: string, options: TransferOptions = {}): Promise<TransferResult> {
    requireGuestPath(guestPath)
    const startedAt = performance.now()
    const sink = new HostFileSink(hostPath, guestPath)
    try {
      const result = await download(await this.#findAgent(options.signal), guestPath, sink, options)
      this.#log(`File downloaded via ${carrier[result.link]}: ${guestPath} (${result.sizeBytes} bytes)`)
      return { path: sink.target, ...result, durationMs: performance.now() - startedAt }
    } finally {
      await sink.discard()
    }
  }

  async stat(path: string, options?: { followLinks?: boolean; signal?: AbortSignal }): Promise<FileEntry> {
    requireGuestPath(path)
    return await statFile(await this.#findAgent(options?.signal), path, options)
  }

  async *list(path: string, options?: { signal?: AbortSignal }): AsyncGenerator<FileEntry> {
    requireGuestPath(path)
    yield* listFolder(await this.#findAgent(options?.signal), path, options)
  }

  async copyIn(hostPath: string, guestPath: string, options: CopyOptions = {}): Promise<CopyResult> {
    requireGuestPath(guestPath)
    return await copyIn(this.#findAgent, hostPath, guestPath, options)
  }

  async copyOut(guestPath: string, hostPath: string, options: CopyOptions = {}): Promise<CopyResult> {
    requireGuestPath(guestPath)
    return await copyOut(this.#findAgent, guestPath, hostPath, options)
  }

  /** The guest's file or folder as a tar, as `docker cp VM:PATH -` gives it: entries begin with its name. */
  async tarOut(
    guestPath: string,
    write: (data: Uint8Array) => Promise<void>,
    options: CopyOptions = {},
  ): Promise<CopyResult> {
    requireGuestPath(guestPath)
    return await tarOut(this.#findAgent, guestPath, write, options)
  }

  /** A tar into a folder of the guest that is there. */
  async tarIn(tar: AsyncIterable<Uint8Array>, guestFolder: string, options: CopyOptions = {}): Promise<CopyResult> {
    requireGuestPath(guestFolder)
    return await tarIn(this.#findAgent, tar, guestFolder, options)
  }

  #uploaded(result: TransferResult): TransferResult {
    this.#log(`File uploaded via ${carrier[result.link]}: ${result.path} (${result.sizeBytes} bytes)`)
    return result
  }
}

/** The earlier project's words for its two ways, which its users know. */
const carrier = { vsock: 'vsock', serial: 'agent' } as const satisfies Record<LinkKind, string>

/** PROTOCOL.md section 1, "path". @throws `bad-request`. */
function requireGuestPath(path: string): void {
  if (path.startsWith('/') && !path.includes('\0') && Buffer.byteLength(path) <= 4096 && path.isWellFormed()) return
  throw new BandSoxError(
    'bad-request',
    `${JSON.stringify(path.slice(0, 200))} is not a path in the guest: it must be absolute, at most 4096 bytes, without NUL`,
  )
}
