/** The folders of what sandboxes are made from, in the storage folder. */
import { join } from 'node:path'

/** One file system holds them all, since a sandbox's folder hard-links what it boots from. */
export const storageFolders = (storage: string) => ({
  boot: join(storage, 'boot'),
  images: join(storage, 'images'),
  disks: join(storage, 'disks'),
})
