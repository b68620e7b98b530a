/** `doctor VM` for people: each part of both links, in the order in which bytes pass them. What the guest says of itself is made printable. */
import { type LinkReport, type LinkState, printableLine } from '@bandsox/sdk'
import { durationText, sizeText, table } from './text.js'

export function linkReportText(report: LinkReport): string {
  const { vsock, serial, current, reason } = report
  const rows: string[][] = []
  const add = (part: string, found: string | number | null, remark = '') =>
    void rows.push([part, found === null ? '?' : printableLine(String(found)), printableLine(remark)])
  add('current link', current ?? 'NONE', reason)
  add('vsock wanted', vsock.wanted)
  add('vsock device', vsock.backend ?? 'none')
  if (vsock.backend !== null) {
    add(vsock.backend === 'daemon' ? 'vsock daemon' : 'vsock backend', vsock.backendState)
    add('CID', vsock.cid)
    add('port', vsock.port)
    add('vsock socket', vsock.socket)
  }
  add('guest kernel', vsock.guestKernel === null ? null : vsock.guestKernel ? 'has vsock' : 'no AF_VSOCK')
  add('guest module', vsock.guestKernel === null ? null : (vsock.guestModule ?? 'none loaded'), builtIn(vsock))
  add('guest device', vsock.guestDevice === null ? null : vsock.guestDevice ? 'there' : 'none')
  add('guest CID', vsock.guestKernel === null ? null : (vsock.guestCid ?? 'none'))
  add('guest listener', listener(vsock), vsock.guestReason ?? '')
  if (vsock.backend !== null) addTried('vsock', vsock)
  add('serial line', serial.line ?? 'none')
  if (serial.line === null) return table(['PART', 'FOUND', ''], rows)
  add('serial socket', serial.socket)
  if (serial.datalink !== null) {
    const { state, rttMs, windowBytes, payloadBytes, framesSent, framesResent, framesDamaged } = serial.datalink
    const round = rttMs === null ? 'no round trip yet' : `round trip ${durationText(rttMs)}`
    add('serial datalink', state, `${round}, window ${sizeText(windowBytes)}, frames of ${sizeText(payloadBytes)}`)
    add('serial frames', `${framesSent} sent`, `${framesResent} again, ${framesDamaged} came damaged`)
  }
  addTried('serial', serial)
  return table(['PART', 'FOUND', ''], rows)

  function addTried(kind: string, { handshakeMs, failure, traffic }: LinkState): void {
    add(`${kind} handshake`, handshakeMs === null ? 'FAILED' : durationText(handshakeMs), failure ?? '')
    if (traffic === null) return
    const { open, opened, toGuestBytes, fromGuestBytes } = traffic
    add(`${kind} bytes`, `${sizeText(toGuestBytes)} in, ${sizeText(fromGuestBytes)} out`, `${open} open of ${opened}`)
  }
}

const builtIn = ({ guestModule, guestDevice }: LinkReport['vsock']): string =>
  guestModule === null && guestDevice === true ? 'its transport is built in' : ''

function listener({ guestPort, guestKernel }: LinkReport['vsock']): string | null {
  if (guestKernel === null) return null
  return guestPort === null ? 'none' : `port ${guestPort}`
}
