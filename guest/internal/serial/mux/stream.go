package mux

import (
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// firstLimit is what each stream may be sent at first, without a word.
	firstLimit = 16 << 10
	// mostLimit bounds what one stream keeps for a reader that does not come.
	mostLimit = 256 << 10
	// allLimits bounds what all streams of one end keep.
	allLimits = 8 << 20
	// heldBytes is how much of what was written a stream takes over: 128 streams have half a MiB.
	heldBytes = 4 << 10
)

// Stream is one connection. It is a net.Conn.
type Stream struct {
	mux  *Mux
	id   uint32
	port uint32

	opening bool  // a host's, not answered yet
	refused bool  // that was the answer
	ended   bool  // the other end closed it, or the session is gone
	cause   error // why, for those who read on; io.EOF after a CLOSE
	closed  bool  // by its owner here
	gone    bool  // no longer one of the mux's

	inUrgent, inReady               bool
	sayOpen, sayAccepted, sayClosed bool
	sayCredit                       int

	// Sending: what Write has taken over, then the rest of what it was called with. A Write ends when its rest can be taken
	// over, so that small ones wait for nobody, and the end of a large one shares a frame with the next.
	held     []byte
	space    []byte // held's home
	out      []byte
	taken    int // of out, so far
	writing  bool
	credit   int // bytes that the other end will take
	writable *sync.Cond
	writeBy  deadline

	// Receiving: limit = expected + what has been promised and is coming + buffer.n + read.
	buffer   ring
	limit    int
	promised int // bytes that the other end may still send
	read     int // bytes read since credit was last given
	// A reader that waits is given its bytes directly.
	into     []byte
	filled   int
	readable *sync.Cond
	readBy   deadline
}

func newStream(m *Mux, id, port uint32) *Stream {
	s := &Stream{mux: m, id: id, port: port, credit: firstLimit, limit: firstLimit, promised: firstLimit}
	s.readable, s.writable = sync.NewCond(m.link), sync.NewCond(m.link)
	return s
}

// Read gives what has come; io.EOF after the other end has closed, and the cause after the session's end.
func (s *Stream) Read(p []byte) (int, error) {
	s.mux.link.Lock()
	defer s.mux.link.Unlock()
	for {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case s.readBy.expired:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case s.buffer.n > 0:
			n := s.buffer.get(p)
			s.consumed(n)
			return n, nil
		case s.ended:
			return 0, s.cause
		}
		if s.into != nil { // another reader was first
			s.readable.Wait()
			continue
		}
		s.into, s.filled = p, 0
		s.readable.Wait()
		n := s.filled
		s.into, s.filled = nil, 0
		if n > 0 {
			s.readable.Signal() // for another reader
			return n, nil
		}
	}
}

// Write returns when all of p is on its way, that is, when it will be delivered as long as the session lives.
func (s *Stream) Write(p []byte) (int, error) {
	s.mux.link.Lock()
	defer s.mux.link.Unlock()
	for s.writing && !s.closed && !s.ended && !s.writeBy.expired {
		s.writable.Wait()
	}
	if err := s.cannotWrite(); err != nil {
		return 0, err
	}
	s.out, s.taken, s.writing = p, 0, true
	s.hold()
	s.mux.offer(s)
	for len(s.out) > 0 {
		s.writable.Wait()
		if err := s.cannotWrite(); err != nil {
			break
		}
	}
	s.out, s.writing = nil, false
	s.writable.Broadcast()
	if s.taken < len(p) {
		return s.taken, s.cannotWrite()
	}
	return s.taken, nil
}

// hold takes the rest of what is being written over, if it fits, and with that the Write is done.
func (s *Stream) hold() {
	if !s.writing || len(s.held)+len(s.out) > heldBytes {
		return
	}
	if s.space == nil && len(s.out) > 0 {
		s.space = make([]byte, heldBytes)
	}
	s.held = s.space[:copy(s.space, s.held)] // moved to the front, where the rest fits behind
	n := copy(s.space[len(s.held):], s.out)
	s.held = s.space[:len(s.held)+n]
	s.taken += n
	s.out = nil
	s.writable.Broadcast() // to this Write among those that wait for their turn
}

// fill moves bytes into a message.
func (s *Stream) fill(p []byte) {
	s.credit -= len(p)
	n := copy(p, s.held)
	s.held = s.held[n:]
	n = copy(p[n:], s.out)
	s.out = s.out[n:]
	s.taken += n
	s.hold()
	if s.closed && len(s.held) == 0 {
		s.sayClosed = true
		s.mux.speak(s)
	}
}

func (s *Stream) cannotWrite() error {
	switch {
	case s.closed:
		return net.ErrClosed
	case s.ended && s.cause == io.EOF:
		return syscall.EPIPE
	case s.ended:
		return s.cause
	case s.writeBy.expired:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Close ends the stream in both directions. What was written before is still delivered.
func (s *Stream) Close() error {
	s.mux.link.Lock()
	defer s.mux.link.Unlock()
	s.close()
	return nil
}

func (s *Stream) close() {
	if s.closed {
		return
	}
	s.closed = true
	s.buffer = ring{}
	s.out = nil
	s.sayCredit, s.sayAccepted = 0, s.sayAccepted && !s.ended
	s.stopTimers()
	s.readable.Broadcast()
	s.writable.Broadcast()
	switch {
	case s.gone:
	case s.ended:
		s.leave()
	case len(s.held) > 0:
		s.mux.offer(s) // fill says CLOSE behind it
	default:
		s.sayClosed = true
		s.mux.speak(s)
	}
}

// leave takes the stream out of the mux, which may then have room for another.
func (s *Stream) leave() {
	s.gone = true
	s.mux.remove(s)
	if s.mux.target == s {
		s.mux.target = nil
	}
}

// end lets nobody wait any longer. After a session, what was not read is gone with it.
func (s *Stream) end(cause error) {
	s.ended, s.cause = true, cause
	s.held, s.space, s.out = nil, nil, nil
	if s.gone {
		s.buffer = ring{}
	}
	s.readable.Broadcast()
	s.writable.Broadcast()
}

// closedByPeer takes in a CLOSE: what came before can still be read.
func (s *Stream) closedByPeer() {
	s.end(io.EOF)
	if s.closed {
		s.sayClosed = false
		s.leave()
	}
}

// sendable says whether the stream has data and credit.
func (s *Stream) sendable() bool { return s.turn() > 0 }

// turn is how much it could send now.
func (s *Stream) turn() int {
	n := len(s.held) + len(s.out)
	if n > s.credit {
		return s.credit
	}
	return n
}

// putWords writes what the stream has to say besides data.
func (s *Stream) putWords(p []byte) int {
	n := 0
	say := func(due bool, k kind, words ...uint32) {
		if !due {
			return
		}
		putHeader(p[n:], k, s.id, wordBytes*len(words))
		n += headerBytes
		for _, word := range words {
			putWord(p[n:], word)
			n += wordBytes
		}
	}
	say(s.sayOpen, open, s.port)
	say(s.sayAccepted, accepted)
	say(s.sayCredit > 0 && !s.ended, credit, uint32(s.sayCredit))
	say(s.sayClosed, closing)
	s.sayOpen, s.sayAccepted, s.sayCredit = false, false, 0
	if s.sayClosed {
		s.sayClosed = false
		s.leave()
	}
	return n
}

// allow takes in a CREDIT.
func (s *Stream) allow(word uint32) error {
	if word == 0 || word > mostLimit || s.credit+int(word) > mostLimit {
		return violatef(CreditTooLarge, "%d more bytes for stream %d, which has %d", word, s.id, s.credit)
	}
	s.credit += int(word)
	s.mux.offer(s)
	return nil
}

// expect takes in the header of a data message.
func (s *Stream) expect(length int) error {
	if length > s.promised {
		return violatef(CreditExceeded, "%d bytes for stream %d, which may be sent %d", length, s.id, s.promised)
	}
	s.promised -= length
	return nil
}

// take stores bytes for the reader.
func (s *Stream) take(p []byte) {
	if s.closed {
		return
	}
	if s.into != nil && s.buffer.n == 0 {
		n := copy(s.into[s.filled:], p)
		s.filled += n
		p = p[n:]
		s.consumed(n)
	}
	if len(p) > 0 {
		s.buffer.put(p)
	}
	s.readable.Signal()
}

// consumed takes note of bytes that have been read, and returns credit when half of the limit has.
func (s *Stream) consumed(n int) {
	s.read += n
	if s.ended || s.read*2 < s.limit {
		return
	}
	m := s.mux
	share := allLimits / len(m.streams)
	if share > mostLimit {
		share = mostLimit
	}
	switch {
	case s.limit < share && s.buffer.n == 0: // the reader is quicker than its credit
		more := s.limit
		if more > share-s.limit {
			more = share - s.limit
		}
		if more > allLimits-m.granted {
			more = allLimits - m.granted
		}
		if more < 0 { // each stream begins with its first limit, whatever the others have
			more = 0
		}
		s.limit += more
		s.read += more
		m.granted += more
	case s.limit > share: // others have come, which shall have as much
		less := s.limit - share
		if less > s.read {
			less = s.read
		}
		s.limit -= less
		s.read -= less
		m.granted -= less
	}
	if s.read == 0 {
		return
	}
	s.sayCredit += s.read
	s.promised += s.read
	s.read = 0
	m.speak(s)
}

func (s *Stream) stopTimers() {
	s.readBy.stop()
	s.writeBy.stop()
}

func (s *Stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

func (s *Stream) SetReadDeadline(t time.Time) error  { return s.setDeadline(&s.readBy, t, s.readable) }
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(&s.writeBy, t, s.writable) }

func (s *Stream) setDeadline(d *deadline, t time.Time, wake *sync.Cond) error {
	s.mux.link.Lock()
	defer s.mux.link.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	d.set(t, wake)
	return nil
}

func (s *Stream) LocalAddr() net.Addr  { return Addr{s.port, s.id} }
func (s *Stream) RemoteAddr() net.Addr { return Addr{s.port, s.id} }

// Addr names a stream by its port and its number.
type Addr struct{ Port, Stream uint32 }

func (Addr) Network() string { return "serial" }

func (a Addr) String() string {
	return strconv.FormatUint(uint64(a.Port), 10) + "#" + strconv.FormatUint(uint64(a.Stream), 10)
}

// deadline wakes those who wait for a Cond when a time has come.
type deadline struct {
	timer   *time.Timer
	expired bool
}

// set sets it anew; the zero time is never. The Cond's lock is held.
func (d *deadline) set(t time.Time, wake *sync.Cond) {
	d.stop()
	d.expired = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.expired = true
		wake.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		wake.L.Lock()
		defer wake.L.Unlock()
		if d.timer == timer { // it was not set anew meanwhile
			d.expired = true
			wake.Broadcast()
		}
	})
	d.timer = timer
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
