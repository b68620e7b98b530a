/** The messages of protocol/PROTOCOL.md, as schemas that validate and types that follow from them. No I/O. */
import { isUtf8 } from 'node:buffer'
import { z } from 'zod'
import { ProtocolError } from './protocol-error.js'

export type Direction = 'to-guest' | 'to-host'

const MAX_DEPTH = 16

const bytes = (text: string) => Buffer.byteLength(text)
const text = (max: number, min = 0) =>
  z.string().refine((value) => {
    const size = bytes(value)
    return size >= min && size <= max && !value.includes('\0') && value.isWellFormed()
  }, `must have ${min} to ${max} bytes, and no NUL`)
const integer = (min: number, max: number) =>
  z
    .number()
    .refine(
      (value) => Number.isSafeInteger(value) && value >= min && value <= max,
      `must be an integer from ${min} to ${max}`,
    )

/** Not `z.record`, which leaves out a name `__proto__`: a variable may well be called so, and its value must be checked. */
const mapOf = <T>(most: number, name: z.ZodType<string>, value: z.ZodType<T>) =>
  z.custom<Record<string, T>>((map) => {
    if (typeof map !== 'object' || map === null || Array.isArray(map)) return false
    const entries = Object.entries(map)
    return (
      entries.length <= most &&
      entries.every(([key, each]) => name.safeParse(key).success && value.safeParse(each).success)
    )
  }, `must be an object of at most ${most} good names and values`)

const size = integer(0, Number.MAX_SAFE_INTEGER)
const path = text(4096, 1).refine((value) => value.startsWith('/'), 'must be an absolute path')
const checksum = z.string().regex(/^[0-9a-f]{8,128}$/)
const mode = integer(0, 0o7777)
const MAX_ARGUMENT_BYTES = 131_072

/** The signals of signal(7) that PROTOCOL.md section 3 lets a host send. */
export const signalNames: readonly string[] = [
  ...[
    'SIGHUP',
    'SIGINT',
    'SIGQUIT',
    'SIGILL',
    'SIGTRAP',
    'SIGABRT',
    'SIGBUS',
    'SIGFPE',
    'SIGKILL',
    'SIGUSR1',
    'SIGSEGV',
  ],
  ...['SIGUSR2', 'SIGPIPE', 'SIGALRM', 'SIGTERM', 'SIGSTKFLT', 'SIGCHLD', 'SIGCONT', 'SIGSTOP', 'SIGTSTP', 'SIGTTIN'],
  ...['SIGTTOU', 'SIGURG', 'SIGXCPU', 'SIGXFSZ', 'SIGVTALRM', 'SIGPROF', 'SIGWINCH', 'SIGIO', 'SIGPWR', 'SIGSYS'],
]
const signalName = z.string().refine((name) => signalNames.includes(name), 'must be a signal of signal(7)')

/** The host's own name of an operation that outlives its connection. */
const token = z.string().regex(/^[A-Za-z0-9_-]{16,64}$/)

const complete = z.object({ type: z.literal('complete'), size, checksum })
const ack = z.object({ type: z.literal('ack'), offset: size })

/** PROTOCOL.md section 3: the largest side of a terminal, in characters. */
export const MAX_TERMINAL_SIDE = 10_000
const terminalSide = integer(1, MAX_TERMINAL_SIDE)
const terminalSize = { cols: terminalSide, rows: terminalSide }

const exec = z
  .object({
    type: z.literal('exec'),
    argv: z.array(text(MAX_ARGUMENT_BYTES)).min(1).max(4096).optional(),
    shell: text(MAX_ARGUMENT_BYTES).optional(),
    env: mapOf(
      1024,
      text(4096, 1).refine((name) => !name.includes('='), 'must not hold ='),
      text(MAX_ARGUMENT_BYTES),
    ).optional(),
    cwd: path.optional(),
    user: text(4096).optional(),
    stdin: z.boolean().optional(),
    timeoutMs: integer(1, 2 ** 31 - 1).optional(),
    makeCwd: z.boolean().optional(),
    stopSignal: signalName.optional(),
    pty: z.object(terminalSize).optional(),
    tool: z.array(text(MAX_ARGUMENT_BYTES)).min(1).max(4096).optional(),
    job: token.optional(),
    keepMs: integer(0, 600_000).optional(),
  })
  .refine(
    ({ argv, shell, tool }) => [argv, shell, tool].filter((each) => each !== undefined).length === 1,
    'needs exactly one of argv, shell and tool',
  )

const hooksMs = integer(0, 600_000)

/** 16 to 512 bytes in base64. */
const entropy = z.base64().refine((value) => {
  const { length } = Buffer.from(value, 'base64')
  return length >= 16 && length <= 512
}, 'must be 16 to 512 bytes')

const toGuest = {
  hello: z
    .object({ type: z.literal('hello'), protocol: integer(1, 65535), minProtocol: integer(1, 65535) })
    .refine(({ protocol, minProtocol }) => minProtocol <= protocol, 'minProtocol must not be above protocol'),
  ping: z.object({ type: z.literal('ping') }),
  exec,
  attach: z.object({ type: z.literal('attach'), job: token, offset: size.optional() }),
  signal: z.object({ type: z.literal('signal'), signal: signalName }),
  resize: z.object({ type: z.literal('resize'), ...terminalSize }),
  eof: z.object({ type: z.literal('eof') }),
  upload: z.object({
    type: z.literal('upload'),
    path,
    checksum: text(4096),
    size: size.optional(),
    mode: mode.optional(),
    makeParents: z.boolean().optional(),
    user: text(4096).optional(),
    offset: size.optional(),
    transfer: token.optional(),
  }),
  download: z.object({
    type: z.literal('download'),
    path,
    checksum: text(4096),
    offset: size.optional(),
    transfer: token.optional(),
  }),
  complete,
  ack,
  abort: z.object({ type: z.literal('abort') }),
  stat: z.object({ type: z.literal('stat'), path, followLinks: z.boolean().optional() }),
  list: z.object({ type: z.literal('list'), path }),
  connect: z.object({ type: z.literal('connect'), port: integer(1, 65535), host: text(255).optional() }),
  links: z.object({ type: z.literal('links') }),
  shutdown: z.object({
    type: z.literal('shutdown'),
    mode: z.enum(['poweroff', 'reboot']),
    graceMs: integer(0, 60_000).optional(),
  }),
  freeze: z.object({
    type: z.literal('freeze'),
    hooksMs: hooksMs.optional(),
    leaseMs: integer(1_000, 600_000).optional(),
  }),
  thaw: z.object({ type: z.literal('thaw') }),
  identify: z.object({
    type: z.literal('identify'),
    timeUs: size.optional(),
    uptimeMs: size.optional(),
    entropy: entropy.optional(),
    hostname: z
      .string()
      .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/)
      .optional(),
    machineId: z
      .string()
      .regex(/^[0-9a-f]{32}$/)
      .optional(),
    port: integer(1, 2 ** 32 - 1).optional(),
    env: mapOf(64, z.string().regex(/^BANDSOX_[A-Z0-9_]{1,248}$/), text(4096)).optional(),
    restored: z.boolean().optional(),
    hooksMs: hooksMs.optional(),
  }),
  jobs: z.object({ type: z.literal('jobs') }),
} as const

const entry = z.object({
  name: text(4096),
  rawName: z.base64().max(4096).optional(),
  type: z.enum(['file', 'directory', 'symlink', 'character-device', 'block-device', 'fifo', 'socket']),
  size,
  mode,
  uid: size,
  gid: size,
  mtimeMs: integer(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
  target: text(4096).optional(),
})

const chunkBytes = integer(1, 1_048_576)
const windowBytes = integer(65_536, 16_777_216)

/** Names of what was done, and how long it took or when it was. */
const stages = mapOf(32, text(64), size)
/** Sentences for a person. */
const remarks = z.array(text(1024)).max(32)

const job = z.object({
  job: token,
  pid: integer(1, 2 ** 31 - 1),
  command: text(256),
  startedMs: size,
  from: size,
  to: size,
  ended: z.boolean(),
  pty: z.boolean(),
  attached: z.boolean(),
})

const toHost = {
  hello: z.object({
    type: z.literal('hello'),
    protocol: integer(1, 65535),
    agent: text(64),
    bootId: text(64),
    capabilities: z.array(text(64)).max(64),
    checksums: z.array(text(32)).min(1).max(16),
    stages: stages.optional(),
  }),
  pong: z.object({ type: z.literal('pong'), uptimeMs: size }),
  started: z.object({ type: z.literal('started'), pid: integer(1, 2 ** 31 - 1) }),
  attached: z.object({
    type: z.literal('attached'),
    pid: integer(1, 2 ** 31 - 1),
    offset: size,
    inputOffset: size,
  }),
  connected: z.object({ type: z.literal('connected') }),
  eof: z.object({ type: z.literal('eof') }),
  links: z.object({
    type: z.literal('links'),
    vsock: z.object({
      kernel: z.boolean(),
      module: text(64).optional(),
      device: z.boolean(),
      cid: integer(0, 2 ** 32 - 1).optional(),
      port: integer(0, 2 ** 32 - 1).optional(),
      reason: text(4096).optional(),
    }),
    serial: z.array(z.object({ name: text(64), kind: z.enum(['port', 'uart']), up: z.boolean() })).max(8),
  }),
  exit: z
    .object({
      type: z.literal('exit'),
      code: integer(0, 255).optional(),
      signal: text(32).optional(),
      timedOut: z.boolean().optional(),
    })
    .refine((exit) => (exit.code === undefined) !== (exit.signal === undefined), 'needs code or signal, not both'),
  ready: z.object({
    type: z.literal('ready'),
    chunkBytes,
    windowBytes,
    offset: size,
    size: size.optional(),
    mode: mode.optional(),
    mtimeMs: integer(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER).optional(),
  }),
  ack,
  complete,
  info: z.object({ type: z.literal('info'), file: entry }),
  entries: z.object({ type: z.literal('entries'), files: z.array(entry).min(1).max(256) }),
  listed: z.object({ type: z.literal('listed'), count: size }),
  stopping: z.object({ type: z.literal('stopping') }),
  frozen: z.object({
    type: z.literal('frozen'),
    processes: integer(0, 2 ** 31 - 1),
    stagesUs: stages,
    warnings: remarks,
  }),
  thawed: z.object({ type: z.literal('thawed') }),
  identified: z.object({
    type: z.literal('identified'),
    stagesUs: stages,
    failures: remarks,
    port: integer(0, 2 ** 32 - 1),
  }),
  jobs: z.object({ type: z.literal('jobs'), jobs: z.array(job).max(256) }),
  error: z.object({ type: z.literal('error'), code: text(64), message: text(4096) }),
} as const

export type ToGuest = { [K in keyof typeof toGuest]: z.infer<(typeof toGuest)[K]> }[keyof typeof toGuest]
export type ToHost = { [K in keyof typeof toHost]: z.infer<(typeof toHost)[K]> }[keyof typeof toHost]
export type ToHostType = ToHost['type']
export type WireEntry = z.infer<typeof entry>

const tables: Record<Direction, Map<string, z.ZodType>> = {
  'to-guest': new Map(Object.entries(toGuest)),
  'to-host': new Map(Object.entries(toHost)),
}

/** @throws ProtocolError in the order of PROTOCOL.md section 1. */
export function parseMessage<D extends Direction>(
  payload: Buffer,
  direction: D,
): D extends 'to-host' ? ToHost : ToGuest {
  if (!isUtf8(payload)) throw new ProtocolError('message-not-utf8', 'a message is not UTF-8')
  if (nesting(payload) > MAX_DEPTH)
    throw new ProtocolError('message-too-deep', `a message nests deeper than ${MAX_DEPTH}`)
  const value = parseJson(payload.toString('utf8'))
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ProtocolError('message-not-object', 'a message is not a JSON object')
  }
  const type = 'type' in value && Object.hasOwn(value, 'type') ? value.type : undefined
  const schema = typeof type === 'string' ? tables[direction].get(type) : undefined
  if (schema === undefined)
    throw new ProtocolError('message-type-unknown', `message type ${preview(type)} is unknown ${direction}`)
  const parsed = schema.safeParse(value)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    throw new ProtocolError(
      'message-invalid',
      `a ${String(type)} is invalid: ${issue?.path.join('.')}: ${issue?.message}`,
    )
  }
  return parsed.data as D extends 'to-host' ? ToHost : ToGuest
}

function parseJson(source: string): unknown {
  try {
    const value: unknown = JSON.parse(source)
    return MAYBE_NOT_PLAIN.test(source) ? JSON.parse(source.replace(STRING_OR_NUMBER, keepPlain)) : value
  } catch (error) {
    throw new ProtocolError('message-not-json', 'a message is not JSON', { cause: error })
  }
}

/**
 * How a number was written is lost once it is parsed: `1.0`, `1e3` and `-0` would pass for integers. So numbers that are not
 * written as integers become one that no field takes. Only for text that is JSON already; strings are stepped over.
 */
const keepPlain = (token: string): string => (token.startsWith('"') || /^(?:0|-?[1-9]\d*)$/.test(token) ? token : '0.5')
const MAYBE_NOT_PLAIN = /\d[.eE]|-0/
const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g

/** Deepest nesting of brackets outside strings; valid JSON is not assumed. */
function nesting(payload: Buffer): number {
  let depth = 0
  let deepest = 0
  let inString = false
  for (let index = 0; index < payload.length; index++) {
    const byte = payload[index]
    if (inString) {
      if (byte === 0x5c /* \ */) index++
      else if (byte === 0x22 /* " */) inString = false
    } else if (byte === 0x22) inString = true
    else if (byte === 0x7b /* { */ || byte === 0x5b /* [ */) deepest = Math.max(deepest, ++depth)
    else if (byte === 0x7d || byte === 0x5d) depth = Math.max(0, depth - 1)
  }
  return deepest
}

const preview = (value: unknown): string => (JSON.stringify(value) ?? 'missing').slice(0, 40)
