/** Shows an image's fetching on stderr: a line for each layer that rewrites itself on a terminal, else a line for each step. */
import { type ImageEvent, printableLine } from '@bandsox/sdk'
import type { Context } from './context.js'
import { counted, rateText, sizeText } from './text.js'

const BAR_WIDTH = 30
/** More lines than this would scroll, and could not be rewritten. */
const MAX_LINES = 16
/** For the lines that are not about layers, and the shell's own. */
const ROWS_LEFT = 3

/** A terminal that does not know its own size says 0. */
const FALLBACK_COLUMNS = 80

interface Layer {
  digest: string
  sizeBytes: number
  bytes: number
  /** When its first bytes came, and how many were there by then. */
  since?: { at: number; bytes: number }
  phase: 'waiting' | 'downloading' | 'present' | 'ready'
}

export interface ImageProgress {
  onEvent: (event: ImageEvent) => void
  /** Takes away what rewrites itself; what was said stays. */
  clear: () => void
}

export function imageProgress(context: Pick<Context, 'isJson'>): ImageProgress {
  if (context.isJson) return { onEvent: () => undefined, clear: () => undefined }
  return process.stderr.isTTY ? onTerminal(process.stderr) : inLines((line) => process.stderr.write(`${line}\n`))
}

function inLines(write: (line: string) => void): ImageProgress {
  return {
    onEvent(event) {
      const line = sentence(event)
      if (line !== undefined) write(printableLine(line))
    },
    clear: () => undefined,
  }
}

/** What is worth a line that stays. */
function sentence(event: ImageEvent): string | undefined {
  switch (event.kind) {
    case 'resolved': {
      const size = event.layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
      return `${event.reference}: ${short(event.digest)}, ${counted(event.layers.length, 'layer')}, ${sizeText(size)}`
    }
    case 'moved':
      return `${event.reference} has moved: ${short(event.from)} is now ${short(event.to)}`
    case 'layer':
      return event.phase === 'ready' ? `layer ${short(event.digest)}: fetched` : undefined
    case 'waiting':
      return `waiting for process ${event.pid}, which fetches the same`
    case 'evicted':
      return `removed to make room: ${event.references.join(', ') || short(event.id)}`
    case 'warning':
      return `warning: ${event.message}`
    case 'disk':
      return event.phase === 'ready' ? `disk: ${sizeText(event.bytes)}` : undefined
    case 'stood-still':
      return `${event.sandbox} goes on: it stood still for ${event.pauseMs} ms`
    case 'preparing':
      return `${event.what} …`
    case 'resolving':
      return undefined
  }
}

function onTerminal(terminal: NodeJS.WriteStream): ImageProgress {
  const layers = new Map<string, Layer>()
  let written = 0
  let drawn = 0

  const erase = () => {
    if (drawn > 0) terminal.write(`\x1b[${drawn}A\x1b[0J`)
    drawn = 0
  }
  const draw = () => {
    const most = Math.min(MAX_LINES, (terminal.rows || MAX_LINES) - ROWS_LEFT)
    const lines = [...layers.values()].slice(0, most).map(layerLine)
    if (layers.size > most) lines.push(`… and ${counted(layers.size - most, 'more layer')}`)
    if (written > 0) lines.push(`disk          ${sizeText(written)} written`)
    erase()
    const width = terminal.columns || FALLBACK_COLUMNS
    terminal.write(lines.map((line) => `${line.slice(0, width - 1)}\n`).join(''))
    drawn = lines.length
  }

  return {
    onEvent(event) {
      if (event.kind === 'resolved') {
        for (const { digest, sizeBytes } of event.layers)
          layers.set(digest, { digest, sizeBytes, bytes: 0, phase: 'waiting' })
      } else if (event.kind === 'layer') {
        const since = layers.get(event.digest)?.since ?? { at: performance.now(), bytes: event.bytes }
        layers.set(event.digest, { ...event, sizeBytes: event.totalBytes, since })
      } else if (event.kind === 'disk') written = event.phase === 'writing' ? event.bytes : 0
      const line = event.kind === 'layer' ? undefined : sentence(event)
      if (line !== undefined) {
        erase()
        terminal.write(`${printableLine(line)}\n`)
      }
      draw()
    },
    clear: erase,
  }
}

function layerLine({ digest, phase, bytes, sizeBytes, since }: Layer): string {
  const name = `${short(digest)} `
  if (phase === 'waiting') return `${name} waiting`
  if (phase === 'present') return `${name} is there`
  if (phase === 'ready') return `${name} ${sizeText(sizeBytes)} fetched`
  const share = sizeBytes === 0 ? 1 : bytes / sizeBytes
  const bar = '█'.repeat(Math.round(share * BAR_WIDTH)).padEnd(BAR_WIDTH, '░')
  const rate = since === undefined ? '' : `, ${rateText(bytes - since.bytes, performance.now() - since.at)}`
  return `${name} ${bar} ${String(Math.floor(share * 100)).padStart(3)} % of ${sizeText(sizeBytes)}${rate}`
}

export const short = (digest: string): string => digest.replace(/^sha256:/, '').slice(0, 12)
