package wire

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Writer is the one writer of a connection: every write is made of whole frames, so that several goroutines may share it.
type Writer struct {
	mutex sync.Mutex
	dst   io.Writer
	ended bool // the last word is said
}

// NewWriter writes frames to dst, which must write all it is given or fail.
func NewWriter(dst io.Writer) *Writer { return &Writer{dst: dst} }

// WriteFrames writes bytes that are whole frames already, in one system call.
func (w *Writer) WriteFrames(frames []byte) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.ended {
		return io.ErrClosedPipe
	}
	_, err := w.dst.Write(frames)
	return err
}

// WriteLast writes a message behind which nothing is written any more.
func (w *Writer) WriteLast(message interface{}) error {
	frame, err := AppendMessage(nil, message)
	if err != nil {
		return err
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.ended = true
	_, err = w.dst.Write(frame)
	return err
}

// WriteMessage writes one message; see AppendMessage for what it may be.
func (w *Writer) WriteMessage(message interface{}) error {
	frame, err := AppendMessage(nil, message)
	if err != nil {
		return err
	}
	return w.WriteFrames(frame)
}

// AppendMessage appends a message's frame to buf. The message is one of the structs of this package, whose JSON is an object
// with a type.
func AppendMessage(buf []byte, message interface{}) ([]byte, error) {
	payload, err := json.Marshal(message)
	if err != nil {
		return buf, fmt.Errorf("cannot encode a message: %w", err)
	}
	if len(payload) > MaxMessageBytes {
		return buf, fmt.Errorf("cannot send a message of %d bytes, at most %d", len(payload), MaxMessageBytes)
	}
	var header [HeaderBytes]byte
	PutHeader(header[:], KindMessage, len(payload))
	return append(append(buf, header[:]...), payload...), nil
}
