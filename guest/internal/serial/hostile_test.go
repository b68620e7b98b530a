package serial

import (
	"encoding/binary"
	"errors"
	"math/rand"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"bandsox.dev/guest/internal/serial/frame"
	"github.com/cespare/xxhash/v2"
)

// hostile is a guest that knows the formats and follows no rule.
type hostile struct {
	t       testing.TB
	host    *Host
	line    *endOfLine
	decoder frame.Decoder
	session uint32
	number  uint64
	offset  uint64

	mu      sync.Mutex
	reports []string
}

func newHostile(t testing.TB) *hostile {
	before := runtime.NumGoroutine()
	hostLine, guestLine := newLine(trouble{}, trouble{}, 1)
	h := &hostile{t: t, line: guestLine, decoder: frame.NewDecoder()}
	h.host = NewHost(hostLine, Settings{Report: func(err error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.reports = append(h.reports, err.Error())
	}})
	t.Cleanup(func() {
		h.host.Close()
		waitFor(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return h
}

// next waits for a frame of a kind.
func (h *hostile) next(kind frame.Kind) frame.Frame {
	for {
		for f := (frame.Frame{}); h.decoder.Next(&f); {
			if f.Kind == kind {
				return f
			}
		}
		n, err := h.line.Read(h.decoder.Space())
		if err != nil {
			h.t.Fatal(err)
		}
		h.decoder.Advance(n)
	}
}

// greet answers the host's next HELLO, so that a session begins.
func (h *hostile) greet() {
	f := h.next(frame.Hello)
	nonces := append(append([]byte{}, f.Payload[2:10]...), 1, 2, 3, 4, 5, 6, 7, 8)
	h.session = uint32(xxhash.Sum64(nonces))
	h.number, h.offset = 1, 0
	h.send(frame.Header{Kind: frame.Welcome}, append([]byte{0, 1}, nonces...))
	waitFor(h.t, "there is a session", func() bool { return h.host.Stats().Up })
}

func (h *hostile) send(header frame.Header, payload []byte) {
	header.FromGuest, header.Length = true, len(payload)
	p := make([]byte, header.FrameBytes())
	copy(p[frame.HeaderBytes:], payload)
	frame.Seal(p, &header)
	if _, err := h.line.Write(p); err != nil {
		h.t.Fatal(err)
	}
}

// data sends the next bytes of the stream, as a well-behaved datalink would.
func (h *hostile) data(payload []byte) {
	h.send(frame.Header{Kind: frame.Data, Session: h.session, Number: h.number, Offset: h.offset, Prompt: true}, payload)
	h.number++
	h.offset += uint64(len(payload))
}

func message(kind byte, stream uint32, payload ...byte) []byte {
	p := []byte{kind, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(p[1:], stream)
	binary.BigEndian.PutUint32(p[5:], uint32(len(payload)))
	return append(p, payload...)
}

func (h *hostile) waitForReport(name string) {
	h.t.Helper()
	waitFor(h.t, name+" is reported", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return strings.Contains(strings.Join(h.reports, "\n"), name)
	})
}

// dial lets the host open stream 1 and accepts it.
func (h *hostile) dial() {
	got := make(chan error, 1)
	go func() {
		_, err := h.host.Dial(testPort, 10*time.Second)
		got <- err
	}()
	h.next(frame.Data)
	h.data(message(2, 1))
	if err := <-got; err != nil {
		h.t.Fatal(err)
	}
}

func ackOf(next, highest uint64, ranges ...uint16) []byte {
	p := make([]byte, 16, 16+2*len(ranges))
	binary.BigEndian.PutUint64(p, next)
	binary.BigEndian.PutUint64(p[8:], highest)
	for _, r := range ranges {
		p = append(p, byte(r>>8), byte(r))
	}
	return p
}

func TestWhatAGuestMustNotSendEndsTheSessionByName(t *testing.T) {
	ack := func(h *hostile, payload []byte) { h.send(frame.Header{Kind: frame.Ack, Session: h.session}, payload) }
	credit := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	cases := map[string]func(h *hostile){
		"ack-beyond-sent":    func(h *hostile) { ack(h, ackOf(1<<50, 1)) },
		"ack-beyond-sent: o": func(h *hostile) { ack(h, ackOf(0, 1<<40)) },
		"ack-malformed":      func(h *hostile) { ack(h, []byte{1}) },
		"ack-malformed: 5 n": func(h *hostile) { ack(h, ackOf(0, 1, 4, 5)) },
		"ack-malformed: 0 n": func(h *hostile) { ack(h, ackOf(0, 1, 1, 0)) },
		"ack-malformed: 2 n": func(h *hostile) { ack(h, ackOf(0, 9, 3, 2, 3, 2)) },
		"data-beyond-window": func(h *hostile) { h.offset = 1 << 60; h.data([]byte{1}) },
		"data-empty":         func(h *hostile) { h.data(nil) },
		"message-kind":       func(h *hostile) { h.data(message(9, 1)) },
		"message-length":     func(h *hostile) { h.data(message(5, 1, 1)) },
		"stream-unknown":     func(h *hostile) { h.data(message(2, 77)) },
		"stream-not-open":    func(h *hostile) { h.dial(); h.data(message(2, 1)) },
		"stream-not-open: m": func(h *hostile) { h.dial(); h.data(append(message(5, 1), message(3, 1, 7)...)) },
		"credit-exceeded":    func(h *hostile) { h.dial(); h.data(message(3, 1, make([]byte, 16385)...)) },
		"credit-too-large":   func(h *hostile) { h.dial(); h.data(message(4, 1, credit(1<<31)...)) },
		"credit-too-large: ": func(h *hostile) {
			h.dial()
			h.data(message(4, 1, credit(200000)...))
			h.data(message(4, 1, credit(200000)...))
		},
		"credit-too-large: 0": func(h *hostile) { h.dial(); h.data(message(4, 1, 0, 0, 0, 0)) },
	}
	for name, act := range cases {
		t.Run(name, func(t *testing.T) {
			h := newHostile(t)
			h.greet()
			act(h)
			h.waitForReport(name)
			h.greet() // and the next session works
			h.dial()
		})
	}
}

func TestAHostMustNotOpenStreamsTwice(t *testing.T) {
	_, guestLine := newLine(trouble{}, trouble{}, 1)
	reports := make(chan error, 10)
	guest := NewGuest(guestLine, Settings{Report: func(err error) { reports <- err }})
	defer guest.Close()
	speak := func(header frame.Header, payload []byte) {
		header.Length = len(payload)
		p := make([]byte, header.FrameBytes())
		copy(p[frame.HeaderBytes:], payload)
		frame.Seal(p, &header)
		guestLine.in.Write(p)
	}
	hear := func(kind frame.Kind) frame.Frame {
		h := &hostile{t: t, line: &endOfLine{Reader: guestLine.out, out: guestLine.in, in: guestLine.out}, decoder: frame.NewDecoder()}
		return h.next(kind)
	}
	begin := func(nonce byte) uint32 {
		speak(frame.Header{Kind: frame.Hello}, []byte{0, 1, 1, 1, 1, 1, 1, 1, 1, nonce})
		f := hear(frame.Welcome)
		return uint32(xxhash.Sum64(f.Payload[2:18]))
	}
	port := []byte{0, 0, 0x23, 0x28}
	session := begin(1)
	speak(frame.Header{Kind: frame.Data, Session: session, Number: 1}, append(message(1, 5, port...), message(1, 5, port...)...))
	if err := <-reports; !strings.Contains(err.Error(), "stream-reused") {
		t.Fatal(err)
	}
	if f := hear(frame.Lost); binary.BigEndian.Uint32(f.Payload) != session {
		t.Fatal("the guest does not say which session is lost")
	}
	session = begin(2)
	var flood []byte
	for id := uint32(1); id < 2000; id++ {
		flood = append(flood, message(1, id, port...)...)
	}
	speak(frame.Header{Kind: frame.Data, Session: session, Number: 1}, flood)
	if err := <-reports; !strings.Contains(err.Error(), "too-many-opens") {
		t.Fatal(err)
	}
}

// TestAFrenziedGuestCostsLittle sends frames with right checks and wild fields, for a host that must neither break nor grow.
func TestAFrenziedGuestCostsLittle(t *testing.T) {
	h := newHostile(t)
	random := rand.New(rand.NewSource(5))
	h.greet()
	sessions := make(chan uint32, 100)
	go func() { // answers each HELLO, so that there is a session again and again
		other := &hostile{t: t, host: h.host, line: h.line, decoder: h.decoder}
		for {
			n, err := other.line.Read(other.decoder.Space())
			if err != nil {
				return
			}
			other.decoder.Advance(n)
			for f := (frame.Frame{}); other.decoder.Next(&f); {
				if f.Kind == frame.Hello {
					nonces := append(append([]byte{}, f.Payload[2:10]...), 1, 2, 3, 4, 5, 6, 7, 8)
					other.send(frame.Header{Kind: frame.Welcome}, append([]byte{0, 1}, nonces...))
					sessions <- uint32(xxhash.Sum64(nonces))
				}
			}
		}
	}()
	go func() {
		for {
			if _, err := h.host.Dial(testPort, 5*time.Millisecond); errors.Is(err, h.host.Err()) && err != nil {
				return
			}
		}
	}()
	wild := func() uint64 {
		return [...]uint64{0, 1, 2, uint64(random.Intn(100)), uint64(random.Intn(1 << 20)), 1 << 32, 1<<62 - 1, ^uint64(0)}[random.Intn(8)]
	}
	var base, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&base)
	for i := 0; i < 30000; i++ {
		payload := make([]byte, random.Intn(1<<uint(random.Intn(13))))
		random.Read(payload)
		if random.Intn(2) == 0 && len(payload) >= 20 {
			copy(payload, ackOf(wild(), wild(), uint16(random.Intn(5)), uint16(random.Intn(5))))
		}
		session := uint32(0)
		if random.Intn(8) != 0 {
			session = h.session
		}
		select {
		case h.session = <-sessions:
		default:
		}
		number := wild()
		h.send(frame.Header{
			Kind: frame.Kind(random.Intn(7)), Session: session, Number: number, Offset: wild(), Span: int(wild() % 1100),
			Prompt: random.Intn(2) == 0,
		}, payload)
	}
	runtime.GC()
	runtime.ReadMemStats(&now)
	if grown := int64(now.HeapAlloc) - int64(base.HeapAlloc); grown > 32<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// TestGapsAreKeptWithinBounds sends every other byte, each in a frame of its own.
func TestGapsAreKeptWithinBounds(t *testing.T) {
	h := newHostile(t)
	h.greet()
	var base, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&base)
	for offset := uint64(1); offset < 1<<20; offset += 20 {
		h.offset = offset
		h.data([]byte{1})
	}
	runtime.GC()
	runtime.ReadMemStats(&now)
	if grown := int64(now.HeapAlloc) - int64(base.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

func TestAnEchoOfOurOwnFramesIsIgnored(t *testing.T) {
	h := newHostile(t)
	h.greet()
	before := h.host.Stats().FramesReceived
	dialled := make(chan error, 1)
	go func() {
		_, err := h.host.Dial(testPort, 10*time.Second)
		dialled <- err
	}()
	buf := make([]byte, 1<<16)
	n, err := h.line.Read(buf) // the OPEN
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.line.Write(buf[:n]); err != nil {
		t.Fatal(err)
	}
	h.data(message(2, 1))
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
	if got := h.host.Stats().FramesReceived - before; got != 1 {
		t.Errorf("%d frames were taken, one was the guest's", got)
	}
}
