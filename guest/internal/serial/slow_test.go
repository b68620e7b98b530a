//go:debug asynctimerchan=0
//go:build go1.25

package serial

import (
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowWire is one direction of a UART whose bytes are so many exits of the machine: a pipe before it, and one byte after the other.
type slowWire struct {
	mu      sync.Mutex
	changed *sync.Cond
	pipe    []byte
	came    []byte
	closed  bool
	// Behind so many bytes no more come through until the other direction has carried some: an interrupt was lost. 0: never.
	sticksAfter int
	carried     int
	stuck       bool
}

const (
	slowBytesPerSecond = 2000
	slowStep           = 5 * time.Millisecond
	pipeBytes          = 64 << 10
)

func newSlowWire(ends *sync.WaitGroup) *slowWire {
	w := &slowWire{}
	w.changed = sync.NewCond(&w.mu)
	ends.Add(1)
	go func() {
		defer ends.Done()
		for w.carry() {
			time.Sleep(slowStep)
		}
	}()
	return w
}

func (w *slowWire) carry() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.pipe) == 0 && !w.closed {
		w.changed.Wait()
	}
	if w.stuck {
		return !w.closed
	}
	n := int(slowBytesPerSecond * slowStep / time.Second)
	if n > len(w.pipe) {
		n = len(w.pipe)
	}
	w.came = append(w.came, w.pipe[:n]...)
	w.pipe = w.pipe[:copy(w.pipe, w.pipe[n:])]
	if w.carried += n; w.sticksAfter > 0 && w.carried >= w.sticksAfter {
		w.carried, w.stuck = 0, true
	}
	w.changed.Broadcast()
	return !w.closed
}

func (w *slowWire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.pipe)+len(p) > pipeBytes && !w.closed {
		w.changed.Wait()
	}
	if w.closed {
		return 0, io.ErrClosedPipe
	}
	w.pipe = append(w.pipe, p...)
	w.changed.Broadcast()
	return len(p), nil
}

func (w *slowWire) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.came) == 0 && !w.closed {
		w.changed.Wait()
	}
	if len(w.came) == 0 {
		return 0, io.EOF
	}
	n := copy(p, w.came)
	w.came = w.came[:copy(w.came, w.came[n:])]
	return n, nil
}

func (w *slowWire) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.changed.Broadcast()
}

func (w *slowWire) loosen() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stuck = false
}

// slowEnd is one end of such a UART.
type slowEnd struct{ in, out *slowWire }

func (e slowEnd) Read(p []byte) (int, error) { return e.in.Read(p) }

func (e slowEnd) Write(p []byte) (int, error) {
	e.in.loosen()
	return e.out.Write(p)
}

func (e slowEnd) Close() error {
	e.in.Close()
	e.out.Close()
	return nil
}

// slowPair runs a test between both ends of a UART like that. The minutes that it takes are not waited for: the clock goes on when every
// goroutine sleeps. Whatever an end has to report is a failure.
func slowPair(t *testing.T, sticksAfter int, body func(t *testing.T, host *Host)) {
	synctest.Test(t, func(t *testing.T) {
		var wires sync.WaitGroup
		down, up := newSlowWire(&wires), newSlowWire(&wires)
		down.sticksAfter = sticksAfter
		report := func(err error) { t.Errorf("reported: %v", err) }
		host := NewHost(slowEnd{in: up, out: down}, Settings{Coding: Text, Report: report})
		guest := NewGuest(slowEnd{in: down, out: up}, Settings{Coding: Text, Report: report})
		wires.Add(1)
		go func() {
			defer wires.Done()
			for {
				conn, err := guest.Accept()
				if err != nil {
					return // closed
				}
				go func() { _ = echoSum(conn) }() // the host sees what did not come back
			}
		}()
		body(t, host)
		for _, end := range []io.Closer{host, guest} {
			if err := end.Close(); err != nil {
				t.Error(err)
			}
		}
		wires.Wait()
	})
}

// sendBack sends bytes there and back, and says how long it took.
func sendBack(t *testing.T, host *Host, size int) time.Duration {
	t.Helper()
	conn, err := host.Dial(testPort, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	content := noise(1, size)
	written := make(chan error, 1)
	go func() { written <- pour(conn, content, 1) }()
	if err := expect(conn, content, 2); err != nil {
		t.Errorf("%v, after %v: %+v", err, time.Since(began), host.Stats())
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	took := time.Since(began)
	t.Logf("%v: %+v", took, host.Stats())
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	return took
}

func TestALineOfTwoKilobytesPerSecondCarriesWhatItIsGiven(t *testing.T) {
	slowPair(t, 0, func(t *testing.T, host *Host) {
		// In the middle of it another stream, as an agent's next connection would be.
		opened := make(chan time.Duration, 1)
		go func() {
			time.Sleep(time.Minute)
			asked := time.Now()
			if other, err := host.Dial(testPort, 10*time.Second); err != nil {
				t.Errorf("a second stream: %v", err)
			} else if err := other.Close(); err != nil {
				t.Error(err)
			}
			opened <- time.Since(asked)
		}()
		// 8 bits in 7 and a header for each KiB: 1.2 bytes on the line for each, while what comes back goes its own way.
		if took, most := sendBack(t, host, 128<<10), 100*time.Second; took > most {
			t.Errorf("it took %v, %v would be right", took, most)
		}
		if wait := <-opened; wait > 6*time.Second {
			t.Errorf("a second stream waited for %v", wait)
		}
		if stats := host.Stats(); stats.FramesResent*20 > stats.FramesSent {
			t.Errorf("%d of %d frames were sent again, of which the line lost none", stats.FramesResent, stats.FramesSent)
		}
	})
}

func TestALineThatStopsUntilTheGuestSaysSomethingGoesOn(t *testing.T) {
	slowPair(t, 7001, func(t *testing.T, host *Host) {
		if took, most := sendBack(t, host, 32<<10), 40*time.Second; took > most {
			t.Errorf("it took %v, %v would be right", took, most)
		}
		// As after an hour without a word from the host, when the guest seldom asks.
		time.Sleep(time.Hour)
		if took, most := sendBack(t, host, 32<<10), 40*time.Second; took > most {
			t.Errorf("after an hour it took %v, %v would be right", took, most)
		}
	})
}
