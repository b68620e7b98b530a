package datalink

import (
	"encoding/binary"
	"fmt"
)

// An ACK's payload (SERIAL.md section 4): next expected offset, highest number seen, and the ranges of numbers up to it that
// are missing, lowest first, each as its first number's distance below the highest and its count.
const (
	ackFixed    = 16
	rangeBytes  = 4
	maxRanges   = 64
	maxAckBytes = ackFixed + maxRanges*rangeBytes
)

// numbers is a range of frame numbers.
type numbers struct {
	first uint64
	count int
}

type ack struct {
	next    uint64
	highest uint64
	missing []numbers
}

func putAck(p []byte, a *ack) int {
	binary.BigEndian.PutUint64(p, a.next)
	binary.BigEndian.PutUint64(p[8:], a.highest)
	n := ackFixed
	for _, m := range a.missing {
		binary.BigEndian.PutUint16(p[n:], uint16(a.highest-m.first))
		binary.BigEndian.PutUint16(p[n+2:], uint16(m.count))
		n += rangeBytes
	}
	return n
}

// parseAck reads an ACK; its missing ranges go to the slice that a brings along.
func parseAck(p []byte, a *ack) error {
	if len(p) < ackFixed || len(p) > maxAckBytes || (len(p)-ackFixed)%rangeBytes != 0 {
		return violatef(AckMalformed, "%d bytes", len(p))
	}
	a.next = binary.BigEndian.Uint64(p)
	a.highest = binary.BigEndian.Uint64(p[8:])
	a.missing = a.missing[:0]
	from := uint64(0)
	for p = p[ackFixed:]; len(p) > 0; p = p[rangeBytes:] {
		distance, count := uint64(binary.BigEndian.Uint16(p)), uint64(binary.BigEndian.Uint16(p[2:]))
		// The highest itself was seen, so every missing range ends below it.
		if distance > a.highest || count == 0 || count > distance || a.highest-distance < from {
			return violatef(AckMalformed, "%d numbers missing from %d below %d", count, distance, a.highest)
		}
		first := a.highest - distance
		a.missing = append(a.missing, numbers{first, int(count)})
		from = first + count
	}
	return nil
}

// The names of SERIAL.md section 4 for what ends a session.
const (
	AckMalformed     = "ack-malformed"
	AckBeyondSent    = "ack-beyond-sent"
	DataBeyondWindow = "data-beyond-window"
	DataEmpty        = "data-empty"
	VersionUnknown   = "version-unknown"
)

// Violation is something that the other side must not send; it ends the session.
type Violation struct {
	Name   string
	Detail string
}

func (v *Violation) Error() string { return "serial: " + v.Name + ": " + v.Detail }

func violatef(name, format string, args ...interface{}) *Violation {
	return &Violation{Name: name, Detail: fmt.Sprintf(format, args...)}
}
