/** The record of a sandbox that was stopped, to be changed by a test. */
import type { SandboxRecord } from '../store/record.js'

export const sampleRecord = (over: Partial<SandboxRecord> = {}): SandboxRecord => ({
  id: 'sbx_aaaaaaaaaa',
  image: {
    reference: 'bandsox/base',
    digest: `sha256:${'0'.repeat(64)}`,
    config: { env: [], user: '', workingDir: '', entrypoint: [], cmd: [], stopSignal: '' },
  },
  vcpu: 1,
  memoryMib: 256,
  diskMib: 4_096,
  env: {},
  name: undefined,
  limits: { cpus: null, diskBytesPerSecond: null, diskOperationsPerSecond: null },
  labels: {},
  metadata: {},
  vsock: 'auto',
  cid: null,
  port: null,
  state: { kind: 'stopped', since: '2026-01-01T00:00:00.000Z' },
  createdAt: '2026-01-01T00:00:00.000Z',
  timings: {},
  importedFrom: undefined,
  hasOwnRoot: false,
  layers: [],
  restoredFrom: undefined,
  pool: undefined,
  machine: undefined,
  operation: undefined,
  ...over,
})
