/** Numbers that one running VM of this host holds: a file per number, so that the file system arbitrates between processes. */

import { randomBytes } from 'node:crypto'
import { link, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'

export interface NumberPool {
  readonly name: 'CID' | 'port'
  readonly from: number
  readonly to: number
}

/** 0–2 are the hypervisor, local and the host (vsock(7)). */
export const cidPool: NumberPool = { name: 'CID', from: 3, to: 65_535 }
export const portPool: NumberPool = { name: 'port', from: 9_000, to: 9_999 }

export class Leases {
  readonly #root: string

  constructor(root: string) {
    this.#root = root
  }

  /** Takes the lowest free number. @throws `host-resource` when none is free. */
  async take(pool: NumberPool, owner: string): Promise<number> {
    const folder = this.#folder(pool)
    await mkdir(folder, { recursive: true, mode: 0o700 })
    // Written first and linked then: a lease is never seen without its owner's name.
    const claim = path.join(folder, `.claim-${randomBytes(6).toString('hex')}`)
    await writeFile(claim, owner, { mode: 0o600, flag: 'wx' })
    try {
      const taken = new Set((await readdir(folder)).map(Number))
      for (let number = pool.from; number <= pool.to; number++) {
        if (taken.has(number)) continue
        try {
          await link(claim, path.join(folder, String(number)))
          return number
        } catch (error) {
          if (!isSystemError(error, 'EEXIST')) throw error // another process was quicker: the next one
        }
      }
    } finally {
      await rm(claim, { force: true })
    }
    throw new BandSoxError(
      'host-resource',
      `no ${pool.name} is free: all of ${pool.from}–${pool.to} are held by running sandboxes`,
      {
        hint: 'stop a sandbox: bandsox vm list',
      },
    )
  }

  /** Gives a number back, if `owner` holds it. */
  async release(pool: NumberPool, number: number, owner: string): Promise<void> {
    if ((await this.ownerOf(pool, number)) === owner) await rm(this.#file(pool, number), { force: true })
  }

  async ownerOf(pool: NumberPool, number: number): Promise<string | undefined> {
    try {
      return await readFile(this.#file(pool, number), 'utf8')
    } catch (error) {
      if (isSystemError(error, 'ENOENT')) return undefined
      throw error
    }
  }

  /** Every number that is held, with its owner. */
  async list(pool: NumberPool): Promise<{ number: number; owner: string }[]> {
    let names: string[]
    try {
      names = await readdir(this.#folder(pool))
    } catch (error) {
      if (isSystemError(error, 'ENOENT')) return []
      throw error
    }
    const leases: { number: number; owner: string }[] = []
    for (const name of names) {
      if (!/^\d+$/.test(name)) continue
      const owner = await this.ownerOf(pool, Number(name))
      if (owner !== undefined) leases.push({ number: Number(name), owner })
    }
    return leases.sort((a, b) => a.number - b.number)
  }

  #folder(pool: NumberPool): string {
    return path.join(this.#root, pool.name.toLowerCase())
  }

  #file(pool: NumberPool, number: number): string {
    return path.join(this.#folder(pool), String(number))
  }
}
