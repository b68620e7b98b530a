/** Boots a sandbox and uses it once: what a newcomer watches, step by step. */
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { root } from './paths.mjs'
import { StepError } from './step.mjs'

const FILE_BYTES = 16 * 1024 * 1024

/**
 * @param {string} storage
 * @returns {import('./step.mjs').Step[]} Each builds on the one before; the last one removes what the first made.
 */
export function tour(storage) {
  /** @type {any} */
  let sandbox
  /** @type {string} */
  let folder
  const content = randomBytes(FILE_BYTES)
  const rate = (/** @type {any} */ { sizeBytes, durationMs }) =>
    `${(sizeBytes / 1048.576 / durationMs).toFixed(1)} MiB/s`
  const figures = (/** @type {any} */ result) =>
    `16 MiB via ${result.link}, ${rate(result)}, ${result.checksum.algorithm} ${result.checksum.value} on both sides`
  return [
    {
      name: 'boot',
      run: async () => {
        const { openBandSox } = await import(pathToFileURL(join(root, 'packages/bandsox/dist/index.js')).href)
        const bandsox = await openBandSox({ storage })
        sandbox = await bandsox.create('bandsox/base')
        folder = await mkdtemp(join(tmpdir(), 'bandsox-quickstart-'))
        const { id, vmm, accelerator, vsock } = await sandbox.info()
        return { detail: `${id} on ${vmm} (${accelerator}), vsock by the ${vsock.backend}`, changed: true }
      },
    },
    {
      name: 'exec',
      needs: ['boot'],
      run: async () => {
        const { exitCode, stdout, link } = await sandbox.exec('echo "hello from $(uname -sr)"').collect()
        if (exitCode !== 0) throw new StepError(`the command exited with ${exitCode}`)
        return { detail: `via ${link}: ${stdout.trim()}`, changed: true }
      },
    },
    {
      name: 'upload',
      needs: ['boot'],
      run: async () => {
        await writeFile(join(folder, 'sent'), content)
        return { detail: figures(await sandbox.files.upload(join(folder, 'sent'), '/root/file')), changed: true }
      },
    },
    {
      name: 'download',
      needs: ['upload'],
      run: async () => {
        const result = await sandbox.files.download('/root/file', join(folder, 'received'))
        if (!content.equals(await readFile(join(folder, 'received')))) throw new StepError('the file came back changed')
        return { detail: figures(result), changed: true }
      },
    },
    {
      name: 'remove',
      run: async () => {
        // Runs whatever failed before: a tour leaves nothing.
        if (folder !== undefined) await rm(folder, { recursive: true, force: true })
        if (sandbox === undefined) return { detail: 'nothing was made' }
        await sandbox.stop()
        await sandbox.delete()
        return { detail: `${sandbox.id}, its disk, sockets and processes`, changed: true }
      },
    },
  ]
}
