import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { LinkReport } from '@bandsox/sdk'
import { linkReportText } from './link-report-text.js'

const OBEYED = '\u001b[2J\u001b]0;owned\u0007\u009b31m\u202e\r\n'

test('what a guest says of its links is not obeyed by a terminal', () => {
  const way = { handshakeMs: null, failure: OBEYED, traffic: null }
  const report: LinkReport = {
    current: null,
    reason: OBEYED,
    vsock: {
      ...way,
      ...{ socket: '/x/vsock.sock', wanted: 'on', backend: 'daemon', backendState: 'running', cid: 3, port: 9_000 },
      ...{
        guestKernel: true,
        guestModule: OBEYED,
        guestDevice: true,
        guestCid: 3,
        guestPort: null,
        guestReason: OBEYED,
      },
    },
    serial: { ...way, socket: null, line: null, datalink: null },
  }
  const text = linkReportText(report)
  assert.match(text, /owned/)
  assert.doesNotMatch(text, /(?!\n)[\p{Cc}\p{Cf}]/u)
  assert.equal(
    text.split('\n').length,
    linkReportText({ ...report, reason: '', vsock: { ...report.vsock, guestReason: '' } }).split('\n').length,
  )
})
