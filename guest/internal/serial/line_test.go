package serial

import (
	"errors"
	"io"
	"math/rand"
	"sync"
	"sync/atomic"
	"time"
)

// trouble is what a direction of a line does to the bytes that pass.
type trouble struct {
	damage   float64       // of a byte: its bits are changed
	drop     float64       // of a write: it is lost
	hole     float64       // of a write: some of its bytes are lost
	repeat   float64       // of a write: it comes twice
	text     float64       // of a byte: console text comes in front of it
	delay    time.Duration // between writing and reading
	chop     bool          // reads give pieces of any size
	capacity int           // bytes on their way, at most; 0: 256 KiB
	pace     time.Duration // of a write: it takes so long
}

// wire is one direction of a line: a FIFO with trouble.
type wire struct {
	mu      sync.Mutex
	changed *sync.Cond
	trouble trouble
	random  *rand.Rand
	buf     []byte
	due     []due // when the bytes up to an index, counted from the beginning, may be read
	written int
	read    int
	closed  bool
	text    []byte // the console text that was mixed in
}

type due struct {
	upTo int
	at   time.Time
}

func newWire(t trouble, seed int64) *wire {
	w := &wire{trouble: t, random: rand.New(rand.NewSource(seed))}
	if t.capacity == 0 {
		w.trouble.capacity = 256 << 10
	}
	w.changed = sync.NewCond(&w.mu)
	return w
}

const mixedText = "[   12.345678] eth0: link up, 1000 Mbit/s\r\n"

func (w *wire) spoil(p []byte) []byte {
	t, r := w.trouble, w.random
	if t.damage+t.drop+t.hole+t.repeat+t.text == 0 {
		return p
	}
	if r.Float64() < t.drop {
		return nil
	}
	out := make([]byte, 0, 2*len(p))
	next := w.gap(t.text)
	for _, b := range p {
		for next == 0 {
			c := mixedText[len(w.text)%len(mixedText)]
			w.text = append(w.text, c)
			out = append(out, c)
			next = w.gap(t.text)
		}
		next--
		out = append(out, b)
	}
	for at := w.gap(t.damage); at < len(out); at += 1 + w.gap(t.damage) {
		out[at] ^= byte(1 + r.Intn(255))
	}
	if len(out) > 0 && r.Float64() < t.hole {
		from := r.Intn(len(out))
		to := from + r.Intn(len(out)-from+1)
		out = append(out[:from], out[to:]...)
	}
	if r.Float64() < t.repeat {
		out = append(out, out...)
	}
	return out
}

// gap is how many bytes pass until something of that rate happens.
func (w *wire) gap(rate float64) int {
	if rate == 0 {
		return 1 << 40
	}
	return int(w.random.ExpFloat64() / rate)
}

func (w *wire) Write(p []byte) (int, error) {
	time.Sleep(w.trouble.pace)
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.buf) >= w.trouble.capacity && !w.closed {
		w.changed.Wait()
	}
	if w.closed {
		return 0, io.ErrClosedPipe
	}
	out := w.spoil(p)
	w.buf = append(w.buf, out...)
	w.written += len(out)
	if w.trouble.delay > 0 {
		w.due = append(w.due, due{w.written, time.Now().Add(w.trouble.delay)})
		time.AfterFunc(w.trouble.delay+time.Millisecond, w.changed.Broadcast)
	}
	w.changed.Broadcast()
	return len(p), nil
}

func (w *wire) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		n := len(w.buf)
		if w.trouble.delay > 0 {
			n = 0
			for len(w.due) > 0 && !time.Now().Before(w.due[0].at) {
				n = w.due[0].upTo - w.read
				if n > len(w.buf) || w.due[0].upTo <= w.read {
					n = 0
				}
				if n > 0 {
					break
				}
				w.due = w.due[1:]
			}
		}
		if n > 0 {
			if n > len(p) {
				n = len(p)
			}
			if w.trouble.chop {
				n = 1 + w.random.Intn(n)
			}
			copy(p, w.buf[:n])
			w.buf = w.buf[:copy(w.buf, w.buf[n:])]
			w.read += n
			w.changed.Broadcast()
			return n, nil
		}
		if w.closed {
			return 0, io.EOF
		}
		w.changed.Wait()
	}
}

func (w *wire) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.changed.Broadcast()
}

// endOfLine is one end of a line.
type endOfLine struct {
	io.Reader
	out *wire
	in  *wire
	cut atomic.Bool // nothing goes through any more, while the other end goes on
}

var errCut = errors.New("the line was cut")

func (e *endOfLine) Write(p []byte) (int, error) {
	if e.cut.Load() {
		return 0, errCut
	}
	return e.out.Write(p)
}

func (e *endOfLine) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if e.cut.Load() {
		return 0, errCut
	}
	return n, err
}

func (e *endOfLine) Close() error {
	if e.cut.Load() {
		return nil // the wires are another's now
	}
	e.in.Close()
	e.out.Close()
	return nil
}

// detach cuts one end off: what it was about to read, and what it would write, is lost.
func (e *endOfLine) detach() { e.cut.Store(true) }

// lose forgets what is on its way.
func (w *wire) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = w.buf[:0]
	w.changed.Broadcast()
}

// newLine gives both ends of a line: the host's and the guest's.
func newLine(toGuest, toHost trouble, seed int64) (host, guest *endOfLine) {
	down, up := newWire(toGuest, seed), newWire(toHost, seed+1)
	return &endOfLine{Reader: up, out: down, in: up}, &endOfLine{Reader: down, out: up, in: down}
}
