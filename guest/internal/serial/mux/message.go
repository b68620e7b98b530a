// Package mux carries many streams over one reliable stream of bytes, each with its own credit, in fair turns.
// protocol/SERIAL.md section 5 specifies it.
package mux

import (
	"encoding/binary"
	"fmt"
)

type kind uint8

const (
	open     kind = 1 // host: a new stream to a port
	accepted kind = 2 // guest: somebody listens there
	data     kind = 3
	credit   kind = 4 // so many more bytes may be sent
	closing  kind = 5 // the end in both directions, or the refusal of an OPEN
)

const (
	headerBytes = 9
	// maxMessage bounds the payload of a message.
	maxMessage = 64 << 10
	wordBytes  = 4 // the payload of OPEN and CREDIT
)

// The names of SERIAL.md section 5 for what ends a session, in the order in which they are looked for.
const (
	MessageKindUnknown = "message-kind-unknown"
	MessageLength      = "message-length"
	StreamUnknown      = "stream-unknown"
	StreamReused       = "stream-reused"
	StreamNotOpen      = "stream-not-open"
	TooManyOpens       = "too-many-opens"
	CreditExceeded     = "credit-exceeded"
	CreditTooLarge     = "credit-too-large"
)

// Violation is something that the other side must not send; it ends the session.
type Violation struct{ Name, Detail string }

func (v *Violation) Error() string { return "serial: " + v.Name + ": " + v.Detail }

func violatef(name, format string, args ...interface{}) *Violation {
	return &Violation{name, fmt.Sprintf(format, args...)}
}

type header struct {
	kind   kind
	stream uint32
	length int
}

func putHeader(p []byte, k kind, stream uint32, length int) {
	p[0] = byte(k)
	binary.BigEndian.PutUint32(p[1:], stream)
	binary.BigEndian.PutUint32(p[5:], uint32(length))
}

func putWord(p []byte, word uint32) { binary.BigEndian.PutUint32(p, word) }

// parser takes messages apart as they come, in whatever pieces. It holds a header and a word, never a payload.
type parser struct {
	held    [headerBytes + wordBytes]byte
	n       int // bytes held
	rest    int // of the data message that is being handed over
	current header
}

// handler takes what the parser finds.
type handler interface {
	message(h header, word uint32) error
	// content is a piece of a data message, whose header has gone to message before.
	content(stream uint32, p []byte) error
}

func (d *parser) feed(p []byte, toHost bool, to handler) error {
	for len(p) > 0 {
		if d.rest > 0 {
			n := len(p)
			if n > d.rest {
				n = d.rest
			}
			d.rest -= n
			if err := to.content(d.current.stream, p[:n]); err != nil {
				return err
			}
			p = p[n:]
			continue
		}
		want := headerBytes
		if d.n >= headerBytes {
			want += d.current.length
		}
		n := copy(d.held[d.n:want], p)
		d.n += n
		p = p[n:]
		if d.n == headerBytes && want == headerBytes {
			if err := d.header(toHost); err != nil {
				return err
			}
			if d.current.kind != data && d.current.length > 0 {
				continue // its word comes next
			}
		}
		if d.n < want {
			return nil
		}
		d.n = 0
		if d.current.kind == data {
			d.rest = d.current.length
		}
		if err := to.message(d.current, binary.BigEndian.Uint32(d.held[headerBytes:])); err != nil {
			return err
		}
	}
	return nil
}

// header checks a header that has come whole.
func (d *parser) header(toHost bool) error {
	h := header{
		kind: kind(d.held[0]), stream: binary.BigEndian.Uint32(d.held[1:]),
	}
	length := binary.BigEndian.Uint32(d.held[5:])
	known := h.kind >= open && h.kind <= closing
	if !known || h.kind == open && toHost || h.kind == accepted && !toHost {
		return violatef(MessageKindUnknown, "kind %d", h.kind)
	}
	least, most := uint32(0), uint32(0)
	switch h.kind {
	case data:
		least, most = 1, maxMessage
	case open, credit:
		least, most = wordBytes, wordBytes
	}
	if length < least || length > most {
		return violatef(MessageLength, "%d bytes in a message of kind %d, which has %d to %d", length, h.kind, least, most)
	}
	h.length = int(length)
	d.current = h
	return nil
}
