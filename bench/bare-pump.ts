/** Moves a file over a bare connection: the same checksum and the same durability as a transfer, and nothing else of it. */
import { open, rename } from 'node:fs/promises'
import xxhash from 'xxhash-wasm'
import type { BareConnection } from './bare-connection.js'

const BLOCK_BYTES = 65_536

const { create64 } = await xxhash()
const hex = (value: bigint): string => value.toString(16).padStart(16, '0')

export async function pumpIn(
  connection: BareConnection,
  hostFile: string,
  guestFile: string,
  size: number,
): Promise<void> {
  await connection.write(Buffer.from(`receive file ${size} ${guestFile}\n`))
  const sum = create64()
  const file = await open(hostFile)
  try {
    const buffer = Buffer.allocUnsafe(BLOCK_BYTES)
    for (let left = size; left > 0; ) {
      const { bytesRead } = await file.read(buffer, 0, BLOCK_BYTES, null)
      const block = buffer.subarray(0, bytesRead)
      sum.update(block)
      await connection.write(block)
      left -= bytesRead
    }
  } finally {
    await file.close()
  }
  compare(hex(sum.digest()), await connection.line())
}

export async function pumpOut(
  connection: BareConnection,
  guestFile: string,
  hostFile: string,
  size: number,
): Promise<void> {
  await connection.write(Buffer.from(`send file ${size} ${guestFile}\n`))
  const sum = create64()
  const temporary = `${hostFile}.part`
  const file = await open(temporary, 'w')
  try {
    let gathered: Buffer[] = []
    let bytes = 0
    const flush = async () => {
      await file.write(gathered.length === 1 && gathered[0] ? gathered[0] : Buffer.concat(gathered))
      gathered = []
      bytes = 0
    }
    await connection.bytes(size, async (piece) => {
      sum.update(piece)
      gathered.push(piece)
      bytes += piece.length
      if (bytes >= BLOCK_BYTES) await flush() // a UART's come a few at a time
    })
    if (bytes > 0) await flush()
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(temporary, hostFile)
  compare(hex(sum.digest()), await connection.line())
}

/** The file pump without the host's file. */
export async function pumpInBytes(connection: BareConnection, content: Buffer, guestFile: string): Promise<void> {
  await connection.write(Buffer.from(`receive file ${content.length} ${guestFile}\n`))
  const sum = create64()
  for (let offset = 0; offset < content.length; offset += BLOCK_BYTES) {
    const block = content.subarray(offset, offset + BLOCK_BYTES)
    sum.update(block)
    await connection.write(block)
  }
  compare(hex(sum.digest()), await connection.line())
}

/** Likewise; in one piece at the end, as `files.read` gives it. */
export async function pumpOutBytes(connection: BareConnection, guestFile: string, size: number): Promise<Buffer> {
  await connection.write(Buffer.from(`send file ${size} ${guestFile}\n`))
  const sum = create64()
  const pieces: Buffer[] = []
  await connection.bytes(size, (piece) => {
    sum.update(piece)
    pieces.push(piece)
  })
  compare(hex(sum.digest()), await connection.line())
  return Buffer.concat(pieces)
}

/** Memory to nowhere: what the link itself can do. */
export async function pumpInPlain(connection: BareConnection, size: number): Promise<void> {
  await connection.write(Buffer.from(`receive plain ${size} -\n`))
  const block = Buffer.alloc(BLOCK_BYTES, 1)
  for (let left = size; left > 0; left -= BLOCK_BYTES) await connection.write(block.subarray(0, left))
  await connection.line()
}

export async function pumpOutPlain(connection: BareConnection, size: number): Promise<void> {
  await connection.write(Buffer.from(`send plain ${size} -\n`))
  await connection.bytes(size, () => undefined)
  await connection.line()
}

function compare(here: string, there: string): void {
  if (here !== there) throw new Error(`the bare pump's checksums differ: ${here} here, ${there} in the guest`)
}
