package serial

import (
	"io"
	"sync"

	"bandsox.dev/guest/internal/serial/frame"
)

// splitterBytes bounds the frame bytes that wait to be read; the datalink's window on a UART is half of it.
const splitterBytes = 64 << 10

// Splitter parts what a console prints into its text, and the frames that a guest wrote between and in it.
type Splitter struct {
	text    func([]byte)
	scanner frame.TextScanner
	printed []byte // the text of one Write

	mu     sync.Mutex
	filled *sync.Cond
	buf    []byte
	closed bool
}

// NewSplitter makes one. text is called from Write, at most once, with the text that was in it, which it must not keep.
func NewSplitter(text func([]byte)) *Splitter {
	s := &Splitter{text: text}
	s.filled = sync.NewCond(&s.mu)
	return s
}

// Write takes what the console printed, and never waits: frame bytes that nobody reads are dropped beyond a bound.
func (s *Splitter) Write(p []byte) (int, error) {
	s.printed = s.printed[:0]
	for rest := p; len(rest) > 0; {
		part, n := s.scanner.Next(rest)
		switch part {
		case frame.PartText:
			if n == len(p) {
				s.text(p)
				return n, nil
			}
			// All at once: a guest decides how small the runs are, and each call is a write to the log.
			s.printed = append(s.printed, rest[:n]...)
		case frame.PartBegin, frame.PartFrame:
			s.put(rest[:n])
		case frame.PartSkip:
			// What a damaged frame left is neither a frame nor fit to be read.
		}
		rest = rest[n:]
	}
	if len(s.printed) > 0 {
		s.text(s.printed)
	}
	return len(p), nil
}

func (s *Splitter) put(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if room := splitterBytes - len(s.buf); len(p) > room {
		p = p[:room]
	}
	if !s.closed {
		s.buf = append(s.buf, p...)
		s.filled.Signal()
	}
}

// Read gives the frames' bytes, each with the RS in front. It waits for some; io.EOF after Close.
func (s *Splitter) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.buf) == 0 {
		if s.closed {
			return 0, io.EOF
		}
		s.filled.Wait()
	}
	n := copy(p, s.buf)
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
	return n, nil
}

// Close ends Read.
func (s *Splitter) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.filled.Broadcast()
	return nil
}
