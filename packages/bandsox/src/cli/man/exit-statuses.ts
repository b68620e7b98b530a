/** What each exit status means, for the manual; the table of errors says which there are. */
import { type ErrorCode, errorTable } from '@bandsox/sdk'

/** What a shell reports for a program that SIGPIPE ended. */
export const SIGPIPE_STATUS = 141

export interface ExitStatus {
  status: number
  meaning: string
  /** As `--json` tells them. */
  codes: ErrorCode[]
}

/** The compiler asks for a line here when an error gets a status that none had before. */
const meanings: Record<(typeof errorTable)[ErrorCode]['exit'], string> = {
  64: 'a mistake in the command line, or in the value of an option',
  65: 'the image, or some of what is imported, is not what it should be',
  66: 'what was named is not there',
  69: 'something that is needed cannot be had',
  70: 'BandSox or the virtual machine failed',
  71: 'the host did not do what it was asked for',
  73: 'the output could not be written',
  74: 'what was transferred or kept is damaged',
  75: 'not now: try again later, or after what the hint says',
  76: 'the guest broke the protocol',
  77: 'it is not permitted',
  124: 'the time for it was over',
  126: 'the guest cannot execute the command',
  127: 'the guest does not have the command',
  130: 'interrupted',
}

/** In ascending order. */
export function exitStatuses(): ExitStatus[] {
  const codesOf = new Map<number, ErrorCode[]>()
  for (const [code, { exit }] of Object.entries(errorTable) as [ErrorCode, { exit: number }][])
    codesOf.set(exit, [...(codesOf.get(exit) ?? []), code])
  return [
    { status: 0, meaning: 'done', codes: [] },
    ...Object.entries(meanings).map(([text, meaning]) => {
      const status = Number(text)
      return { status, meaning, codes: codesOf.get(status) ?? [] }
    }),
    { status: SIGPIPE_STATUS, meaning: 'nobody read the output any more', codes: [] },
  ]
}
