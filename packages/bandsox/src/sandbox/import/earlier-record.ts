/** What the earlier project kept of a VM, in `metadata/<id>.json`: checked as far as it tells what a VM is. Pure. */
import { BandSoxError } from '@bandsox/sdk'
import { z } from 'zod'

/**
 * Its ids, and nothing else: an id is a file's name, and sandboxes are found by it, so that any other text could stand for the
 * name or the id of a sandbox of ours.
 */
const EARLIER_ID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** Of what is only for the report, a damaged value is as good as none. */
const number = z.number().nullish().catch(null)

const recordSchema = z.object({
  id: z.string().regex(EARLIER_ID, 'is not an id of the earlier project, which are UUIDs'),
  name: z.string().nullish(),
  image: z.string().nullish(),
  vcpu: z.number().nullish(),
  mem_mib: z.number().nullish(),
  disk_size_mib: z.number().nullish(),
  rootfs_path: z.string().nullish(),
  vsock_config: z.object({ cid: number, port: number }).nullish().catch(null),
  /** Seconds since 1970. */
  created_at: number,
  status: z.string().nullish().catch(null),
  pid: number,
  env_vars: z.unknown().optional(),
  metadata: z.unknown().optional(),
})

/** Values as they are there, whatever their bounds; `null`: none. */
export interface EarlierRecord {
  id: string
  name: string | null
  image: string | null
  vcpu: number | null
  memoryMib: number | null
  diskMib: number | null
  rootfsPath: string | null
  cid: number | null
  port: number | null
  createdAtSeconds: number | null
  /** Says little: `running` stays there when the VM dies. */
  status: string | null
  pid: number | null
  env: unknown
  metadata: unknown
}

/**
 * @param file Its name: `<id>.json`.
 * @throws `bad-request` saying what is wrong with it.
 */
export function parseRecord(file: string, text: string): EarlierRecord {
  const record = recordSchema.safeParse(parseJson(text))
  if (!record.success) throw damaged(issueText(record.error))
  const { id, vsock_config: vsock, ...data } = record.data
  if (file !== `${id}.json`) throw damaged(`the id in it is ${id}`)
  return {
    id,
    name: data.name ?? null,
    image: data.image ?? null,
    vcpu: data.vcpu ?? null,
    memoryMib: data.mem_mib ?? null,
    diskMib: data.disk_size_mib ?? null,
    rootfsPath: data.rootfs_path ?? null,
    cid: vsock?.cid ?? null,
    port: vsock?.port ?? null,
    createdAtSeconds: data.created_at ?? null,
    status: data.status ?? null,
    pid: data.pid ?? null,
    env: data.env_vars ?? {},
    metadata: data.metadata ?? {},
  }
}

const cidSchema = z.object({ next_cid: z.number().int() })
const portSchema = z.object({ next_port: z.number().int() })

/** Of `cid_allocator.json`. @throws `bad-request`. */
export const parseNextCid = (text: string): number => parsed(cidSchema, text).next_cid
/** Of `port_allocator.json`; its list of used ports was never right. @throws `bad-request`. */
export const parseNextPort = (text: string): number => parsed(portSchema, text).next_port

function parsed<T>(schema: z.ZodType<T>, text: string): T {
  const result = schema.safeParse(parseJson(text))
  if (result.success) return result.data
  throw damaged(issueText(result.error))
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw damaged('it is no JSON', error)
  }
}

function issueText({ issues: [issue] }: z.ZodError): string {
  if (issue === undefined) return 'unknown'
  return issue.path.length === 0 ? issue.message : `${issue.path.join('.')}: ${issue.message}`
}

const damaged = (what: string, cause?: unknown) => new BandSoxError('bad-request', what, { cause })
