package mux

import (
	"errors"
	"math"
	"net"
	"sync"
	"time"

	"bandsox.dev/guest/internal/serial/datalink"
)

const (
	// MaxStreams are open at once; another is refused.
	MaxStreams = 128
	// maxRefused bounds the refusals that wait to be sent.
	maxRefused = 1024
	// quantum is how much a stream sends before the next has its turn.
	quantum = 16 << 10
	// leastPiece keeps the end of a frame from being filled with a sliver of a message.
	leastPiece = 64
	// urgentBytes is the most that one stream has to say at once besides data.
	urgentBytes = 4*headerBytes + 2*wordBytes
)

var (
	ErrRefused        = errors.New("serial: the guest refused the port")
	ErrNoSession      = errors.New("serial: no session with the guest within the time limit")
	ErrNoAnswer       = errors.New("serial: the guest did not answer within the time limit")
	ErrTooManyStreams = errors.New("serial: 128 streams are open, which is the most")
	errIDsUsedUp      = errors.New("serial: the session's stream numbers are used up")
)

// Mux is one end. All its state is guarded by the link's mutex; what is exported without saying otherwise takes it.
type Mux struct {
	link       *datalink.Link
	guest      bool
	acceptPort func(uint32) bool
	changed    *sync.Cond // a session began or ended, or a stream waits to be accepted

	up      bool
	streams map[uint32]*Stream
	last    uint32 // the highest stream number of the session
	backlog []*Stream
	urgent  []*Stream // have something to say besides data
	ready   []*Stream // have data and credit, in the order of their turns
	refused []uint32
	parser  parser
	target  *Stream // of the data message that is coming; nil when nobody wants it
	granted int     // sum of the streams' limits
	opened  uint64
}

// New makes a mux. Attach gives it its link before that starts. acceptPort, a guest's, may be nil: any port will do.
func New(guest bool, acceptPort func(uint32) bool) *Mux {
	return &Mux{guest: guest, acceptPort: acceptPort, streams: map[uint32]*Stream{}}
}

// Attach sets the link whose user the mux is.
func (m *Mux) Attach(link *datalink.Link) {
	m.link = link
	m.changed = sync.NewCond(link)
}

// Dial opens a stream from the host to a port of the guest; limit is for both, the session and the answer.
func (m *Mux) Dial(port uint32, limit time.Duration) (net.Conn, error) {
	m.link.Lock()
	defer m.link.Unlock()
	var late deadline
	late.set(time.Now().Add(limit), m.changed)
	defer late.stop()
	for {
		for !m.up {
			if err := m.link.Ended(); err != nil {
				return nil, err
			}
			if late.expired {
				return nil, ErrNoSession
			}
			m.changed.Wait()
		}
		if len(m.streams) >= MaxStreams {
			return nil, ErrTooManyStreams
		}
		if m.last == math.MaxUint32 {
			m.link.Restart(errIDsUsedUp)
			continue
		}
		m.last++
		s := m.add(m.last, port)
		s.opening, s.sayOpen = true, true
		m.speak(s)
		for s.opening && !s.ended && !late.expired {
			m.changed.Wait()
		}
		switch {
		case !s.opening:
			m.opened++
			return s, nil
		case s.refused:
			s.close()
			return nil, ErrRefused
		case s.ended:
			s.close() // with its session; the next one may do
		default:
			s.close()
			return nil, ErrNoAnswer
		}
	}
}

// Accept gives the next stream that the host has opened, or net.ErrClosed when the link has ended.
func (m *Mux) Accept() (net.Conn, error) {
	m.link.Lock()
	defer m.link.Unlock()
	for len(m.backlog) == 0 {
		if m.link.Ended() != nil {
			return nil, net.ErrClosed
		}
		m.changed.Wait()
	}
	s := m.backlog[0]
	m.backlog = m.backlog[:copy(m.backlog, m.backlog[1:])]
	return s, nil
}

// Streams counts those that are open now, and those that ever were. The mutex is held.
func (m *Mux) Streams() (int, uint64) { return len(m.streams), m.opened }

// Begin is the link's word that a session is there.
func (m *Mux) Begin() {
	m.up = true
	m.changed.Broadcast()
}

// End is its word that the session is gone.
func (m *Mux) End(cause error) {
	m.up = false
	for _, s := range m.streams {
		s.gone = true
		s.end(cause)
	}
	for _, s := range m.backlog {
		s.stopTimers()
	}
	m.streams = map[uint32]*Stream{}
	m.last, m.backlog, m.urgent, m.ready, m.refused = 0, nil, nil, nil, nil
	m.parser, m.target, m.granted = parser{}, nil, 0
	m.changed.Broadcast()
}

func (m *Mux) add(id, port uint32) *Stream {
	s := newStream(m, id, port)
	m.streams[id] = s
	m.granted += s.limit
	return s
}

func (m *Mux) remove(s *Stream) {
	delete(m.streams, s.id)
	m.granted -= s.limit
}

// speak has a stream's word sent before any data.
func (m *Mux) speak(s *Stream) {
	if !s.inUrgent {
		s.inUrgent = true
		m.urgent = append(m.urgent, s)
	}
	m.link.Kick()
}

// offer gives a stream its turn if it can use it.
func (m *Mux) offer(s *Stream) {
	if !s.inReady && s.sendable() {
		s.inReady = true
		m.ready = append(m.ready, s)
		m.link.Kick()
	}
}

// Pending is about how many bytes there are to send.
func (m *Mux) Pending() int {
	for len(m.ready) > 0 && !m.ready[0].sendable() {
		m.popReady()
	}
	n := (len(m.urgent) + len(m.refused)) * headerBytes
	if len(m.ready) > 0 {
		n += m.ready[0].turn() + (len(m.ready)-1)*quantum
	}
	return n
}

func (m *Mux) popReady() *Stream {
	s := m.ready[0]
	m.ready = m.ready[:copy(m.ready, m.ready[1:])]
	s.inReady = false
	return s
}

// Pull fills in messages: urgent ones, then data in turns. Each is whole.
func (m *Mux) Pull(to []byte) int {
	n := 0
	for len(m.refused) > 0 && len(to)-n >= headerBytes {
		putHeader(to[n:], closing, m.refused[0], 0)
		n += headerBytes
		m.refused = m.refused[:copy(m.refused, m.refused[1:])]
	}
	for len(m.urgent) > 0 {
		if len(to)-n < urgentBytes {
			return n
		}
		s := m.urgent[0]
		m.urgent = m.urgent[:copy(m.urgent, m.urgent[1:])]
		s.inUrgent = false
		n += s.putWords(to[n:])
	}
	for m.Pending() > 0 && len(m.ready) > 0 {
		s := m.ready[0]
		turn := s.turn()
		piece := turn
		if len(m.ready) > 1 && piece > quantum {
			piece = quantum
		}
		if piece > maxMessage {
			piece = maxMessage
		}
		if room := len(to) - n - headerBytes; piece > room {
			if room < leastPiece {
				break
			}
			piece = room
		}
		m.popReady()
		putHeader(to[n:], data, s.id, piece)
		s.fill(to[n+headerBytes : n+headerBytes+piece])
		n += headerBytes + piece
		if s.sendable() {
			s.inReady = true
			m.ready = append(m.ready, s)
		}
	}
	return n
}

// Receive takes the bytes that the other end pulled.
func (m *Mux) Receive(p []byte) error { return m.parser.feed(p, !m.guest, m) }

// message handles one message; of a data message, its header.
func (m *Mux) message(h header, word uint32) error {
	if h.kind == open {
		return m.opens(h.stream, word)
	}
	s := m.streams[h.stream]
	if h.kind == data {
		m.target = s
	}
	if s == nil {
		if h.stream > m.last || h.stream == 0 {
			return violatef(StreamUnknown, "number %d, the last opened is %d", h.stream, m.last)
		}
		return nil // it was closed here; the other end did not know that yet
	}
	if s.ended || s.opening && h.kind != accepted && h.kind != closing || !s.opening && h.kind == accepted {
		return violatef(StreamNotOpen, "message of kind %d for stream %d", h.kind, h.stream)
	}
	switch h.kind {
	case accepted:
		s.opening = false
		m.changed.Broadcast()
	case data:
		return s.expect(h.length)
	case credit:
		return s.allow(word)
	case closing:
		s.refused = s.opening
		s.closedByPeer()
		m.changed.Broadcast()
	}
	return nil
}

// content takes a piece of a data message.
func (m *Mux) content(_ uint32, p []byte) error {
	if m.target != nil {
		m.target.take(p)
	}
	return nil
}

// opens handles an OPEN.
func (m *Mux) opens(id, port uint32) error {
	if id <= m.last {
		return violatef(StreamReused, "number %d, the last opened is %d", id, m.last)
	}
	m.last = id
	if len(m.streams) >= MaxStreams || m.acceptPort != nil && !m.acceptPort(port) {
		if len(m.refused) >= maxRefused {
			return violatef(TooManyOpens, "%d refusals wait to be sent", len(m.refused))
		}
		m.refused = append(m.refused, id)
		return nil
	}
	s := m.add(id, port)
	s.sayAccepted = true
	m.opened++
	m.speak(s)
	m.backlog = append(m.backlog, s)
	m.changed.Broadcast()
	return nil
}
