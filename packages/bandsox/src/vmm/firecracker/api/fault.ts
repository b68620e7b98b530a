/** Why a call of Firecracker's API did not succeed: it was refused, or there is no answer to go by. No I/O. */
import { BandSoxError, printableLine } from '@bandsox/sdk'
import { refusalSchema } from './answers.js'

/** Characters. Firecracker's sentences have some hundred; they name paths, and nest causes. */
const MAX_MESSAGE = 2_000

/** One request, as messages name it. */
export interface ApiCall {
  method: 'GET' | 'PUT' | 'PATCH'
  path: string
}

/**
 * Firecracker answered, and said no. Its process is good for another try, with one exception: one that could not load a snapshot
 * ends by itself, except when it had been configured before.
 */
export class FirecrackerFault extends BandSoxError implements ApiCall {
  /** Firecracker's own, on one line. */
  readonly faultMessage: string
  /** Of HTTP: 400 for nearly all, 413 for what is too large, 503 when too many connections are open. */
  readonly status: number
  readonly method: ApiCall['method']
  readonly path: string

  /** @param body As it came: JSON with `fault_message`, or anything else. */
  constructor(call: ApiCall, status: number, body: string) {
    const faultMessage = faultMessageOf(body) || `HTTP status ${status}, without a reason`
    super('vmm-control', `Firecracker refused ${call.method} ${call.path}: ${faultMessage}`)
    this.faultMessage = faultMessage
    this.status = status
    this.method = call.method
    this.path = call.path
  }
}

/**
 * - `unreachable`: nobody listens at the socket. Nothing was sent.
 * - `silent`: no complete answer in time.
 * - `broken`: the connection ended before the answer did.
 * - `unintelligible`: what came is no answer of Firecracker's, or more than it would ever send.
 */
export type NoAnswerReason = 'unreachable' | 'silent' | 'broken' | 'unintelligible'

/** There is no answer to go by. */
export class FirecrackerNoAnswer extends BandSoxError implements ApiCall {
  readonly reason: NoAnswerReason
  readonly method: ApiCall['method']
  readonly path: string
  /** False where it is certain that nothing has changed; else look before you ask for the same again. */
  readonly mayHaveTakenEffect: boolean
  /** Of HTTP, where an answer had begun. */
  readonly status: number | undefined

  /**
   * @param why Half a sentence. What others wrote may be in it.
   * @param options.mayHaveTakenEffect Default: whenever the call asks for a change, and was not being refused.
   */
  constructor(
    reason: NoAnswerReason,
    call: ApiCall,
    why: string,
    options: { status?: number | undefined; mayHaveTakenEffect?: boolean | undefined; cause?: unknown } = {},
  ) {
    const { status } = options
    const isRefused = status !== undefined && status >= 400
    const mayHaveTakenEffect = options.mayHaveTakenEffect ?? (call.method !== 'GET' && !isRefused)
    const reasons = printableLine(why).slice(0, MAX_MESSAGE)
    const consequence = mayHaveTakenEffect ? '; the call may have taken effect' : ''
    super('vmm-control', `no answer to Firecracker's ${call.method} ${call.path}: ${reasons}${consequence}`, {
      cause: options.cause,
      hint: hints[reason],
    })
    this.reason = reason
    this.method = call.method
    this.path = call.path
    this.mayHaveTakenEffect = mayHaveTakenEffect
    this.status = status
  }
}

const hints: Record<NoAnswerReason, string> = {
  unreachable: 'Firecracker has ended, or has not started yet; see what it printed: bandsox logs ID',
  silent: 'the host may be overloaded, or Firecracker hang; see what it printed: bandsox logs ID',
  broken:
    'Firecracker has probably ended, or has ten connections open already, its most; see what it printed: bandsox logs ID',
  unintelligible: 'this is not how Firecracker answers: trust nothing in the machine: bandsox vm delete ID --force',
}

function faultMessageOf(body: string): string {
  // Its HTTP server puts bare line breaks into strings of JSON, where none may be.
  const line = body.replace(/[\r\n]+/g, ' ')
  let message = line
  try {
    message = refusalSchema.parse(JSON.parse(line))
  } catch {
    // No JSON, or of another shape: the text itself is all that there is to tell.
  }
  return printableLine(message.trim()).slice(0, MAX_MESSAGE)
}
