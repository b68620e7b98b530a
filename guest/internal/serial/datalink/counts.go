package datalink

import "time"

// Counts are of the whole life of a link, whatever sessions it had. Bytes are those of the streams above and their headers.
type Counts struct {
	FramesSent, FramesResent, FramesLost                         uint64
	FramesReceived, FramesDamaged, FramesRepeated, FramesUnknown uint64
	BytesSent, BytesReceived                                     uint64
}

// State is how a link does now.
type State struct {
	Counts
	Up                        bool
	RTT                       time.Duration
	WindowBytes, PayloadBytes int
}

// State looks at a link. The mutex is held.
func (l *Link) State() State {
	counts := l.counts
	counts.FramesDamaged = l.decoder.Damaged()
	s := State{Counts: counts, Up: l.session.up}
	if s.Up {
		s.RTT, s.WindowBytes, s.PayloadBytes = l.sender.window.srtt, l.sender.window.bytes, l.sender.fragment()
	}
	return s
}
