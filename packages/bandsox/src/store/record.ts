/** What is kept of a sandbox on disk: enough for any process to find it, use it and end it. */
import { z } from 'zod'

const state = z.discriminatedUnion('kind', [
  z.object({ kind: z.enum(['creating', 'running', 'paused', 'stopping', 'stopped', 'hibernated']), since: z.string() }),
  z.object({ kind: z.literal('failed'), since: z.string(), reason: z.string() }),
])

export const recordSchema = z.object({
  version: z.literal(1),
  id: z.string().regex(/^sbx_[a-z2-7]{10}$/),
  name: z.string().optional(),
  image: z.object({
    reference: z.string(),
    digest: z.string(),
    config: z.object({
      env: z.array(z.string()),
      user: z.string(),
      workingDir: z.string(),
      entrypoint: z.array(z.string()),
      cmd: z.array(z.string()),
      /** Empty: SIGTERM. */
      stopSignal: z.string().default(''),
    }),
  }),
  vcpu: z.number().int(),
  memoryMib: z.number().int(),
  diskMib: z.number().int(),
  env: z.record(z.string(), z.string()),
  vsock: z.enum(['auto', 'on', 'off']),
  /** Held from start to stop. */
  cid: z.number().int().nullable(),
  port: z.number().int().nullable(),
  state,
  createdAt: z.string(),
  /** What the driver told of the machine; there once it was started. */
  machine: z
    .object({
      vmm: z.string(),
      version: z.string(),
      accelerator: z.enum(['kvm', 'tcg']),
      acceleratorReason: z.string().optional(),
      vsock: z.object({ backend: z.enum(['kernel', 'daemon']), socket: z.string() }).nullable(),
    })
    .optional(),
  timings: z.record(z.string(), z.number()),
})

export type SandboxRecord = z.infer<typeof recordSchema>
