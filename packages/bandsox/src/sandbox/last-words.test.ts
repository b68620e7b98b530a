import assert from 'node:assert/strict'
import { utimes, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { describeLastWords, lastWords } from './last-words.js'
import { stateAfterExit } from './settle.js'

const since = '2026-01-01T00:00:00.500Z'
const READY = 'bandsox-agent: 0.1.0 ready on vsock port 9000 (boot 1 ms)\n'
const PANIC = '[  1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\n'

async function vmWith(t: Parameters<typeof temporaryFolder>[0], files: Record<string, string>): Promise<string> {
  const folder = await temporaryFolder(t)
  for (const [name, text] of Object.entries(files)) await writeFile(path.join(folder, name), text)
  return folder
}

describe('the last words of a machine', () => {
  it('are the panic of its own guest, not of an earlier one', async (t) => {
    const panicked = await vmWith(t, { 'console.log': `${READY}${PANIC}[  1.1] CPU: 0\n` })
    assert.equal((await lastWords(panicked, since)).panic, 'Attempted to kill init! exitcode=0x0000000b')
    const atBoot = await vmWith(t, { 'console.log': PANIC })
    assert.match((await lastWords(atBoot, since)).panic ?? '', /kill init/)
    const earlier = await vmWith(t, { 'console.log': `${READY}${PANIC}${READY}` })
    assert.equal((await lastWords(earlier, since)).panic, undefined)
    const old = await vmWith(t, { 'console.log': PANIC })
    await utimes(path.join(old, 'console.log'), 0, 0)
    assert.equal((await lastWords(old, since)).panic, undefined)
  })

  it("are the VMM's error, from its log of this run or else from its stderr, harmless and short", async (t) => {
    const log = [
      '2025-12-31T23:59:59.000000000 [vm:main] Error: of an earlier run',
      '2026-01-01T00:00:01.000000000 [vm:main] Running Firecracker v1.17.0',
      `2026-01-01T00:00:02.000000000 [vm:main] Building VMM failed: KVM \u001b[31m${'x'.repeat(1000)}`,
      '2026-01-01T00:00:03.000000000 [vm:main] Firecracker exiting with error. exit_code=1',
    ].join('\n')
    const logged = (await lastWords(await vmWith(t, { 'firecracker.log': log }), since)).vmm ?? ''
    assert.match(logged, /Building VMM failed: KVM/)
    assert.ok(logged.length <= 300 && !logged.includes('\u001b'))
    const both = await vmWith(t, { 'firecracker.log': log, 'vmm.log': 'Error: RunWithApi\n' })
    assert.match((await lastWords(both, since)).vmm ?? '', /Building VMM failed/)
    const printed = await vmWith(t, { 'firecracker.log': '', 'vmm.log': 'Error: RunWithApi\n' })
    assert.equal((await lastWords(printed, since)).vmm, 'Error: RunWithApi')
    assert.deepEqual(await lastWords(await vmWith(t, { 'vmm.log': 'a warning\n' }), since), {
      panic: undefined,
      vmm: undefined,
    })
  })

  it('make of a tidy end a failure when the guest has panicked, and are told with it', () => {
    const exit = { code: 0, at: since }
    assert.equal(stateAfterExit(exit).kind, 'stopped')
    const panicked = stateAfterExit(exit, { panic: 'no init', vmm: 'Error: nothing' })
    assert.ok(panicked.kind === 'failed')
    assert.match(panicked.reason, /exited with 0 .*; the guest's kernel panicked: no init$/)
    const crashed = stateAfterExit({ code: 148, at: since }, { panic: undefined, vmm: 'bad syscall' })
    assert.ok(crashed.kind === 'failed')
    assert.match(crashed.reason, /exited with 148 .*; the VMM said: bad syscall$/)
    assert.equal(describeLastWords({ panic: undefined, vmm: undefined }), '')
  })
})
