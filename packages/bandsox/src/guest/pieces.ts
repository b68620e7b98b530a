/** Gathers bytes from the guest, so that their count and not the guest's choice of frames decides how much memory they take. */

/** A Buffer costs some 100 bytes beside its content, so pieces below this are copied together. */
const SMALL_BYTES = 4_096
const BLOCK_BYTES = 65_536

export class Pieces {
  #pieces: Buffer[] = []
  /** Small pieces are copied in here one behind the other; what lies before `#listed` is in `#pieces` or was taken. */
  #block = Buffer.alloc(0)
  #listed = 0
  #used = 0

  add(data: Buffer): void {
    if (data.length >= SMALL_BYTES) {
      this.#list()
      this.#pieces.push(data)
      return
    }
    if (this.#block.length - this.#used < data.length) {
      this.#list()
      this.#block = Buffer.allocUnsafe(BLOCK_BYTES)
      this.#listed = this.#used = 0
    }
    this.#used += data.copy(this.#block, this.#used)
  }

  /** All that was added since the last call, in order; the buffers are the caller's from then on. */
  take(): Buffer[] {
    this.#list()
    return this.#pieces.splice(0)
  }

  #list(): void {
    if (this.#used > this.#listed) this.#pieces.push(this.#block.subarray(this.#listed, this.#used))
    this.#listed = this.#used
  }
}
