// Package wire is the codec for the frames of protocol/PROTOCOL.md: no I/O but the reader and the writer that it is given.
package wire

import "encoding/binary"

// Kind is the first byte of a frame.
type Kind byte

// The kinds of PROTOCOL.md section 1.
const (
	KindMessage Kind = 0x01
	KindData    Kind = 0x02
	KindStdout  Kind = 0x03
	KindStderr  Kind = 0x04
)

// Bounds of PROTOCOL.md section 1, in bytes.
const (
	HeaderBytes     = 5
	MaxMessageBytes = 262144
	MaxDataBytes    = 1048576
	maxNesting      = 16
)

// Direction says who sends what a decoder reads: some kinds and messages are allowed one way only.
type Direction int

// The two directions.
const (
	ToGuest Direction = iota
	ToHost
)

// boundOf gives the largest payload of a kind, and whether the kind may travel in this direction at all.
func (d Direction) boundOf(kind Kind) (int, bool) {
	switch kind {
	case KindMessage:
		return MaxMessageBytes, true
	case KindData:
		return MaxDataBytes, true
	case KindStdout, KindStderr:
		return MaxDataBytes, d == ToHost
	}
	return 0, false
}

// PutHeader writes a frame's header into the first HeaderBytes of buf. Senders leave that room in front of a payload,
// so that header and payload are one write without a copy.
func PutHeader(buf []byte, kind Kind, payloadBytes int) {
	buf[0] = byte(kind)
	binary.BigEndian.PutUint32(buf[1:HeaderBytes], uint32(payloadBytes))
}

// ReadHeader reads what PutHeader has written.
func ReadHeader(buf []byte) (kind Kind, payloadBytes int) {
	return Kind(buf[0]), int(binary.BigEndian.Uint32(buf[1:HeaderBytes]))
}
