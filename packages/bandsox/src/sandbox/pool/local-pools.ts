/** The pools of this host. */
import { BandSoxError, type PoolInfo, type PoolOptions, type Pools } from '@bandsox/sdk'
import type { PoolRecord } from '../../store/pool-store.js'
import { checkedShape } from '../create-options.js'
import type { Host } from '../host.js'
import { fillPool, removeMembers } from './fill-pool.js'

const MAX_SIZE = 1_000
const DEFAULT_MAX_AGE_MS = 60 * 60 * 1000
const MAX_AGE_MS = 30 * 24 * 60 * 60 * 1000

export class LocalPools implements Pools {
  readonly #host: Host
  readonly #startFilling: (id: string) => void

  /** @param startFilling Has another process fill a pool, or nobody where there is none to. */
  constructor(host: Host, startFilling: (id: string) => void) {
    this.#host = host
    this.#startFilling = startFilling
  }

  async set(image: string, options: PoolOptions): Promise<PoolInfo> {
    const { size, maxAgeMs = DEFAULT_MAX_AGE_MS, waits = false, signal, ...shape } = options
    if (!Number.isSafeInteger(size) || size < 1 || size > MAX_SIZE)
      throw new BandSoxError(
        'bad-request',
        `size: ${String(size)} is not allowed; it must be an integer from 1 to ${MAX_SIZE}`,
      )
    if (!Number.isSafeInteger(maxAgeMs) || maxAgeMs < 1_000 || maxAgeMs > MAX_AGE_MS)
      throw new BandSoxError(
        'bad-request',
        `maxAgeMs: ${String(maxAgeMs)} is not allowed; it must be an integer from 1000 to ${MAX_AGE_MS}`,
      )
    const { vcpu, memoryMib, diskMib, vsock } = checkedShape(shape, this.#host.defaultLimits)
    const pool = await this.#host.store.pools.set({
      ...{ image, size, maxAgeMs, options: { vcpu, memoryMib, diskMib, vsock } },
    })
    const members = await this.#host.store.pools.members(pool.id)
    await removeMembers(this.#host, members.slice(size), signal)
    if (waits) await fillPool(this.#host, pool.id, signal)
    else this.#startFilling(pool.id)
    return await this.#info(pool)
  }

  async list(): Promise<PoolInfo[]> {
    return await Promise.all((await this.#host.store.pools.list()).map((pool) => this.#info(pool)))
  }

  async remove(image: string): Promise<void> {
    const pools = (await this.#host.store.pools.list()).filter((pool) => pool.image === image || pool.id === image)
    if (pools.length === 0)
      throw new BandSoxError('not-found', `there is no pool of ${JSON.stringify(image)}`, {
        hint: 'see what there is: bandsox pool list',
      })
    for (const { id } of pools) {
      await this.#host.store.pools.remove(id)
      await removeMembers(this.#host, await this.#host.store.pools.members(id))
    }
  }

  /** @returns undefined while another process fills it. */
  async fill(id: string, signal?: AbortSignal): Promise<{ added: number; removed: number } | undefined> {
    return await fillPool(this.#host, id, signal)
  }

  async #info({ id, image, size, options, maxAgeMs, createdAt, failure }: PoolRecord): Promise<PoolInfo> {
    const { ready, making } = await this.#host.store.pools.counts(id)
    return { id, image, size, ...options, maxAgeMs, createdAt, ready, making, failure: failure ?? null }
  }
}
