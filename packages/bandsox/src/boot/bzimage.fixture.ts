/** A bzImage for tests: the header fields that we read, around a payload. */

/** @param payload Compressed, with its unpacked size behind it where its format needs that. */
export function bzImage(payload: Buffer, release: string): Buffer {
  const setupSectors = 2
  const setup = Buffer.alloc((setupSectors + 1) * 512)
  setup.writeUInt8(setupSectors, 0x1f1)
  setup.write('HdrS', 0x202)
  setup.writeUInt16LE(0x020f, 0x206)
  setup.writeUInt16LE(0x300, 0x20e)
  setup.write(`${release} (who@where) #1\0`, 0x500)
  const loader = Buffer.alloc(100)
  setup.writeUInt32LE(loader.length, 0x248)
  setup.writeUInt32LE(payload.length, 0x24c)
  return Buffer.concat([setup, loader, payload, Buffer.alloc(64)])
}
