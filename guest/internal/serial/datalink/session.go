package datalink

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"time"

	"bandsox.dev/guest/internal/serial/frame"
	"github.com/cespare/xxhash/v2"
)

const (
	version = 1

	helloBytes   = 2 + 8
	welcomeBytes = 2 + 8 + 8
	lostBytes    = 4
)

var (
	// ErrLost ends a session that the other side knows nothing of: it began anew.
	ErrLost = errors.New("serial: the guest lost the session")
	// ErrReplaced ends a guest's session when a host begins another.
	ErrReplaced = errors.New("serial: the host began a new session")
	// ErrSilent ends a host's session when the guest acknowledges nothing.
	ErrSilent = errors.New("serial: nothing was acknowledged for 15 s")
)

// session is what both ends agreed on, and what is to be said about that.
type session struct {
	up    bool
	id    uint32
	host  uint64 // the nonces
	guest uint64

	helloDue, welcomeDue, lostDue bool
	helloAt                       time.Duration // when the last one was asked for
	lostID                        uint32
	lostAt                        time.Duration
	told                          bool // that the guest's version is another one
}

func (s *session) greetingDue() bool { return s.helloDue || s.welcomeDue || s.lostDue }

// sessionID makes both nonces into what marks the session's frames. 0 marks the greetings.
func sessionID(host, guest uint64) uint32 {
	var both [16]byte
	binary.BigEndian.PutUint64(both[:], host)
	binary.BigEndian.PutUint64(both[8:], guest)
	if id := uint32(xxhash.Sum64(both[:])); id != 0 {
		return id
	}
	return 1
}

func nonce() uint64 {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		// getrandom(2) fails only on kernels without it; a session's secrecy is not worth going on with a known number.
		panic("serial: no random numbers: " + err.Error())
	}
	return binary.BigEndian.Uint64(b[:])
}

// greet begins to ask for a session with a new nonce.
func (l *Link) greet() {
	l.session.host = nonce()
	now := l.clock.now()
	at := l.session.helloAt + l.pace.hello
	if l.session.helloAt == 0 || at <= now {
		l.session.askNow(now)
		at = now + l.pace.hello
		l.Kick()
	}
	l.arm(at)
}

func (s *session) askNow(now time.Duration) {
	s.helloDue = true
	s.helloAt = now + 1 // never zero, which means never
}

// tick repeats a HELLO that was not answered.
func (s *session) tick(l *Link, now time.Duration) {
	if s.up || l.settings.Guest {
		return
	}
	if at := s.helloAt + l.pace.hello; at > now {
		l.arm(at)
		return
	}
	s.askNow(now)
	l.Kick()
	l.arm(now + l.pace.hello)
}

func (l *Link) beginSession() {
	l.session.up = true
	l.session.id = sessionID(l.session.host, l.session.guest)
	l.session.helloDue, l.session.lostDue = false, false
	l.sender.reset(l.pace, l.clock.now())
	l.receiver.reset()
	l.user.Begin()
}

func (l *Link) endSession(cause error) {
	if l.session.up {
		l.session.up = false
		l.user.End(cause)
	}
}

func (l *Link) restart(cause error) {
	l.endSession(cause)
	switch {
	case l.err != nil:
	case l.settings.Guest:
		// The host shall hear of it even when it has nothing to send.
		l.session.lostDue, l.session.lostID, l.session.lostAt = true, l.session.id, l.clock.now()+1
	default:
		l.greet()
	}
}

// unknown takes note of a frame of another session than ours: a host's remains from before a guest's restart, or the reverse.
func (l *Link) unknown(id uint32) {
	l.counts.FramesUnknown++
	now := l.clock.now()
	s := &l.session
	if l.settings.Guest && (s.lostAt == 0 || s.lostAt+lostEvery <= now) {
		s.lostDue, s.lostID, s.lostAt = true, id, now+1
	}
}

// greeting handles HELLO, WELCOME and LOST. What is malformed is passed over: these frames are the only ones that a file's
// content could hold, to be found where its own frame is damaged.
func (l *Link) greeting(f *frame.Frame) {
	p, s := f.Payload, &l.session
	switch {
	case f.Session != 0 || (f.Kind == frame.Hello) != l.settings.Guest:
		l.counts.FramesUnknown++
	case f.Kind == frame.Hello && len(p) == helloBytes:
		s.welcomeDue = true
		host := binary.BigEndian.Uint64(p[2:])
		if s.guest != 0 && host == s.host {
			return // our answer was lost
		}
		l.endSession(ErrReplaced)
		s.host, s.guest = host, nonce()|1 // never zero, which means that there was no host
		// A host of another version learns ours from the answer, and begins nothing.
		if binary.BigEndian.Uint16(p) == version {
			l.beginSession()
		}
	case f.Kind == frame.Welcome && len(p) == welcomeBytes:
		if s.up || binary.BigEndian.Uint64(p[2:]) != s.host {
			return // an answer to a question that we have had answered, or to an earlier one
		}
		if peer := binary.BigEndian.Uint16(p); peer != version {
			if !s.told {
				s.told = true
				l.report(violatef(VersionUnknown, "the guest speaks version %d, this host %d", peer, version))
			}
			return
		}
		s.guest = binary.BigEndian.Uint64(p[10:])
		l.beginSession()
	case f.Kind == frame.Lost && len(p) == lostBytes:
		if s.up && binary.BigEndian.Uint32(p) == s.id {
			l.report(ErrLost)
			l.restart(ErrLost)
		}
	default:
		l.counts.FramesUnknown++
	}
}

// appendGreetings appends what is to be said about the session.
func (l *Link) appendGreetings(to []byte) []byte {
	s := &l.session
	if s.helloDue {
		s.helloDue = false
		var p [helloBytes]byte
		binary.BigEndian.PutUint16(p[:], version)
		binary.BigEndian.PutUint64(p[2:], s.host)
		to = l.appendGreeting(to, frame.Hello, p[:])
	}
	if s.welcomeDue {
		s.welcomeDue = false
		var p [welcomeBytes]byte
		binary.BigEndian.PutUint16(p[:], version)
		binary.BigEndian.PutUint64(p[2:], s.host)
		binary.BigEndian.PutUint64(p[10:], s.guest)
		to = l.appendGreeting(to, frame.Welcome, p[:])
	}
	if s.lostDue {
		s.lostDue = false
		var p [lostBytes]byte
		binary.BigEndian.PutUint32(p[:], s.lostID)
		to = l.appendGreeting(to, frame.Lost, p[:])
	}
	return to
}

func (l *Link) appendGreeting(to []byte, kind frame.Kind, p []byte) []byte {
	h := frame.Header{Kind: kind, FromGuest: l.settings.Guest, Length: len(p)}
	at := len(to)
	to = to[:at+h.FrameBytes()]
	copy(to[at+frame.HeaderBytes:], p)
	frame.Seal(to[at:], &h)
	return to
}
