package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

// idleBufferBytes is what a connection holds while nothing happens on it: a hello and an ordinary exec fit.
const idleBufferBytes = 4096

// bulkBufferBytes is the buffer of a connection that receives data: a few 64 KiB frames per read, since under TCG each
// system call counts. Larger frames are handed over in parts, so that no frame makes a connection hold a megabyte. It
// must not be smaller than MaxMessageBytes: a message is parsed in one piece.
const bulkBufferBytes = 4 * (65536 + HeaderBytes)

var bulkBuffers = sync.Pool{New: func() interface{} { b := make([]byte, bulkBufferBytes); return &b }}

// Frame is one frame, or one part of a large data frame.
type Frame struct {
	Kind Kind
	// Message is set for KindMessage.
	Message Message
	// Payload is set for the other kinds. It is valid until the next call of Next or Release.
	Payload []byte
	// Rest counts the bytes of this frame that are still to come, in further parts: 0 for a whole frame and the last part.
	Rest int
}

// Decoder reads frames from a stream and validates them, in the order that PROTOCOL.md section 1 gives.
type Decoder struct {
	src        io.Reader
	direction  Direction
	buf        []byte
	start, end int     // the unread bytes are buf[start:end]
	pooled     *[]byte // buf's home, when it is a bulk buffer
	kind       Kind    // of the data frame that is being handed over in parts
	rest       int     // its bytes still to come
	idle       []byte
}

// NewDecoder decodes what the given direction's sender writes to src.
func NewDecoder(src io.Reader, direction Direction) *Decoder {
	idle := make([]byte, idleBufferBytes)
	return &Decoder{src: src, direction: direction, buf: idle, idle: idle}
}

// Next gives the next frame. Its error is io.EOF at the end of the stream between two frames, a *Violation for what must
// not be sent, or the reader's own error. After an error the decoder is of no further use.
func (d *Decoder) Next() (Frame, error) {
	if d.rest > 0 {
		return d.part()
	}
	if err := d.need(HeaderBytes); err != nil {
		if err == io.ErrUnexpectedEOF && d.start == d.end {
			return Frame{}, io.EOF
		}
		return Frame{}, d.named(err)
	}
	kind := Kind(d.buf[d.start])
	length := binary.BigEndian.Uint32(d.buf[d.start+1 : d.start+HeaderBytes])
	bound, known := d.direction.boundOf(kind)
	switch {
	case !known:
		return Frame{}, Violatef(FrameKindUnknown, "kind 0x%02x", byte(kind))
	case length == 0:
		return Frame{}, Violatef(FrameEmpty, "kind 0x%02x", byte(kind))
	case length > uint32(bound):
		return Frame{}, Violatef(FrameTooLarge, "%d bytes, at most %d", length, bound)
	}
	d.start += HeaderBytes
	if kind != KindMessage {
		d.kind, d.rest = kind, int(length)
		return d.part()
	}
	if err := d.need(int(length)); err != nil {
		return Frame{}, d.named(err)
	}
	payload := d.buf[d.start : d.start+int(length)]
	d.start += int(length)
	message, err := parseMessage(payload, d.direction)
	if err != nil {
		return Frame{}, err
	}
	return Frame{Kind: kind, Message: message}, nil
}

// part hands over the rest of a data frame, or as much of it as the buffer can hold.
func (d *Decoder) part() (Frame, error) {
	size := d.rest
	if size > len(d.buf) {
		d.useBulkBuffer()
	}
	if size > len(d.buf) {
		size = len(d.buf)
	}
	if err := d.need(size); err != nil {
		return Frame{}, d.named(err)
	}
	payload := d.buf[d.start : d.start+size]
	d.start += size
	d.rest -= size
	return Frame{Kind: d.kind, Payload: payload, Rest: d.rest}, nil
}

// Release gives a large buffer back, when the operation that needed it has ended.
func (d *Decoder) Release() {
	if d.end-d.start > len(d.idle) {
		return // more than an idle connection's buffer was sent ahead: keep it, it will be read soon
	}
	if d.pooled != nil {
		d.replace(d.idle, nil)
	}
}

func (d *Decoder) useBulkBuffer() {
	if len(d.buf) < bulkBufferBytes {
		pooled := bulkBuffers.Get().(*[]byte)
		d.replace(*pooled, pooled)
	}
}

// replace moves the unread bytes into another buffer.
func (d *Decoder) replace(buf []byte, pooled *[]byte) {
	unread := copy(buf, d.buf[d.start:d.end])
	if d.pooled != nil {
		bulkBuffers.Put(d.pooled)
	}
	d.buf, d.pooled, d.start, d.end = buf, pooled, 0, unread
}

// need reads until size bytes are unread in the buffer. io.ErrUnexpectedEOF says that the stream ended before.
func (d *Decoder) need(size int) error {
	if d.end-d.start >= size {
		return nil
	}
	if size > len(d.buf) {
		d.useBulkBuffer() // holds the largest message, and no part of data is larger than the buffer
	}
	if d.start+size > len(d.buf) || d.start == d.end {
		d.end = copy(d.buf, d.buf[d.start:d.end])
		d.start = 0
	}
	for d.end-d.start < size {
		n, err := d.src.Read(d.buf[d.end:])
		d.end += n
		if err == nil {
			continue
		}
		if d.end-d.start >= size {
			return nil // the reader will give its error again
		}
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// named turns an end of the stream inside a frame into the protocol's name for it.
func (d *Decoder) named(err error) error {
	if err == io.ErrUnexpectedEOF {
		return Violatef(FrameTruncated, "the stream ended inside a frame")
	}
	return err
}
