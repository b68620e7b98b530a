// Package frame is the codec for the frames of protocol/SERIAL.md section 2, raw and text-safe. No I/O.
package frame

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cespare/xxhash/v2"
)

const (
	HeaderBytes = 32
	// checkBytes is the length of the payload's check. A frame without a payload has none.
	checkBytes = 4
	// MaxFrameBytes is what one write(2) to a virtio-serial port carries (drivers/char/virtio_console.c, port_fops_write).
	MaxFrameBytes = 32 << 10
	MaxPayload    = MaxFrameBytes - HeaderBytes - checkBytes
	// MaxSpan bounds how far apart the oldest open number and a frame's own may be: the receiver keeps a mark for each.
	MaxSpan = 1023
	// maxCounter bounds numbers and offsets so far away from 2^64 that no sum with a length overflows.
	maxCounter = 1 << 62
)

// magic is not valid UTF-8 in any position, so text never looks like a frame's beginning.
const magic = 0xF5D8

// Kind says what a frame is for.
type Kind uint8

const (
	Data    Kind = 1 // numbered bytes of the stream
	Ack     Kind = 2 // what has been received
	Hello   Kind = 3 // host: begin a session; keyed 0
	Welcome Kind = 4 // guest: the answer; keyed 0
	Lost    Kind = 5 // guest: that session is unknown here; keyed 0
)

const (
	flagFromGuest = 1 << 0
	flagPrompt    = 1 << 1
	knownFlags    = flagFromGuest | flagPrompt
)

// Header is the fixed beginning of every frame.
type Header struct {
	Kind      Kind
	FromGuest bool
	// Prompt asks for an ACK at once: the sender has nothing more to send, or a good part of its window is out.
	Prompt  bool
	Session uint32
	// Number is the frame's own; zero for what is not numbered.
	Number uint64
	// Offset is the first payload byte's place in the stream.
	Offset uint64
	// Span is Number minus the lowest number whose fate the sender does not know.
	Span   int
	Length int // of the payload, without its check
}

// FrameBytes is the length of the whole frame.
func (h *Header) FrameBytes() int { return Size(h.Length) }

// Size is the length of a frame with so much payload.
func Size(payload int) int {
	if payload == 0 {
		return HeaderBytes
	}
	return HeaderBytes + payload + checkBytes
}

// The names of SERIAL.md for what makes a frame a damaged one, in the order in which they are looked for.
const (
	HeaderCheck    = "header-check"
	KindUnknown    = "kind-unknown"
	FlagsUnknown   = "flags-unknown"
	LengthTooLarge = "length-too-large"
	CounterTooHigh = "counter-too-high"
	SpanTooLarge   = "span-too-large"
	PayloadCheck   = "payload-check"
	FrameCut       = "frame-cut"
)

// Damage is why bytes that begin like a frame are none.
type Damage struct{ Name, Detail string }

func (d *Damage) Error() string { return d.Name + ": " + d.Detail }

// The common ones carry no figures: a bad line has them all the time, and they shall cost nothing.
var (
	errHeaderCheck  = &Damage{HeaderCheck, "magic or check of the header is wrong"}
	errPayloadCheck = &Damage{PayloadCheck, "the payload is not what its check says"}
	errFrameCut     = &Damage{FrameCut, "the rest of the frame does not come"}
)

// parseHeader reads a header from the first HeaderBytes of p.
func parseHeader(p []byte, h *Header) *Damage {
	p = p[:HeaderBytes]
	if binary.BigEndian.Uint16(p) != magic || crc32.ChecksumIEEE(p[:28]) != binary.BigEndian.Uint32(p[28:]) {
		return errHeaderCheck
	}
	flags := p[3]
	*h = Header{
		Kind: Kind(p[2]), FromGuest: flags&flagFromGuest != 0, Prompt: flags&flagPrompt != 0,
		Session: binary.BigEndian.Uint32(p[4:]),
		Number:  binary.BigEndian.Uint64(p[8:]), Offset: binary.BigEndian.Uint64(p[16:]),
		Span: int(binary.BigEndian.Uint16(p[24:])), Length: int(binary.BigEndian.Uint16(p[26:])),
	}
	switch {
	case h.Kind < Data || h.Kind > Lost:
		return &Damage{KindUnknown, fmt.Sprintf("kind %d", h.Kind)}
	case flags&^knownFlags != 0:
		return &Damage{FlagsUnknown, fmt.Sprintf("flags %#02x", flags)}
	case h.Length > MaxPayload:
		return &Damage{LengthTooLarge, fmt.Sprintf("%d bytes, at most %d", h.Length, MaxPayload)}
	case h.Number >= maxCounter || h.Offset >= maxCounter:
		return &Damage{CounterTooHigh, fmt.Sprintf("number %d, offset %d", h.Number, h.Offset)}
	case h.Span > MaxSpan || uint64(h.Span) > h.Number:
		return &Damage{SpanTooLarge, fmt.Sprintf("%d of number %d, at most %d", h.Span, h.Number, MaxSpan)}
	}
	return nil
}

// Seal makes a frame of p, whose payload lies at p[HeaderBytes:HeaderBytes+h.Length], by writing what is around it. p is
// h.FrameBytes() long.
func Seal(p []byte, h *Header) {
	binary.BigEndian.PutUint16(p, magic)
	p[2] = byte(h.Kind)
	p[3] = 0
	if h.FromGuest {
		p[3] |= flagFromGuest
	}
	if h.Prompt {
		p[3] |= flagPrompt
	}
	binary.BigEndian.PutUint32(p[4:], h.Session)
	binary.BigEndian.PutUint64(p[8:], h.Number)
	binary.BigEndian.PutUint64(p[16:], h.Offset)
	binary.BigEndian.PutUint16(p[24:], uint16(h.Span))
	binary.BigEndian.PutUint16(p[26:], uint16(h.Length))
	binary.BigEndian.PutUint32(p[28:], crc32.ChecksumIEEE(p[:28]))
	if h.Length > 0 {
		binary.BigEndian.PutUint32(p[HeaderBytes+h.Length:], payloadCheck(p, h.Length))
	}
}

// payloadCheck binds the payload to its header, and with that to session and number: a line that loses exactly one frame's
// length would else put one frame's payload behind another's header.
func payloadCheck(p []byte, length int) uint32 {
	return uint32(xxhash.Sum64(p[HeaderBytes:HeaderBytes+length])) ^ binary.BigEndian.Uint32(p[28:])
}

// checkPayload says whether a complete frame's payload is what was sent.
func checkPayload(p []byte, h *Header) bool {
	return h.Length == 0 || binary.BigEndian.Uint32(p[HeaderBytes+h.Length:]) == payloadCheck(p, h.Length)
}
