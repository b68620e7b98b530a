// Package monitor finds out what a machine does now, from the VMM's own monitor: it listens to a connection of the QEMU Machine
// Protocol, and tells of every change.
//
// Events only say that something has changed; what the machine does is what the VMM answers when it is asked after each of them.
// The VMM may have been taken over by its guest: each line is bounded, so is the rate of lines, and what makes no sense is left out.
package monitor

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/shim/record"
)

const (
	// A connection that ends is made anew, after a wait that doubles.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// farewellLimit is for the VMM's last words, which are there already when it has ended.
	farewellLimit = time.Second
	// maxReports bounds what one VMM can put into the shim's log by nonsense.
	maxReports = 20
)

// Ears are who hears of a machine.
type Ears struct {
	// Stops is called as soon as the machine stops, or is about to; Runs when it is sure that it runs. Both come often.
	Stops, Runs func()
	// Changed hears of every change of state.
	Changed func(record.Machine)
	Report  func(error)
}

// Watch listens to one VMM.
type Watch struct {
	socket string
	ears   Ears

	stopping chan struct{}
	stopOnce sync.Once
	done     chan struct{}

	mu sync.Mutex
	// conn is nil between two connections.
	conn *net.UnixConn

	// What follows belongs to the goroutine, until done.
	reports  int
	now      record.Machine
	shutdown string
	pace     pace
}

// Start begins to listen at a socket of the VMM's. now is what is known so far.
func Start(socket string, now record.Machine, ears Ears) *Watch {
	watch := &Watch{
		socket: socket, now: now, ears: ears,
		stopping: make(chan struct{}), done: make(chan struct{}),
	}
	go watch.run()
	return watch
}

// Finish takes the last words of a VMM that has ended, and returns why it ended its machine, if it said so. It may be called again.
func (w *Watch) Finish() (shutdown string) {
	w.stopOnce.Do(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		close(w.stopping)
		if w.conn != nil {
			// The listening goroutine has the error of a connection that is closed already.
			_ = w.conn.SetDeadline(time.Now().Add(farewellLimit))
		}
	})
	<-w.done
	return w.shutdown
}

// Look does nothing: this monitor tells by itself.
func (w *Watch) Look() error { return nil }

func (w *Watch) run() {
	defer close(w.done)
	for wait := firstRetry; ; wait = longer(wait) {
		began := time.Now()
		w.trouble(w.connect())
		if time.Since(began) > lastRetry {
			wait = firstRetry
		}
		select {
		case <-w.stopping:
			return
		case <-time.After(wait):
		}
	}
}

func longer(wait time.Duration) time.Duration {
	if wait *= 2; wait < lastRetry {
		return wait
	}
	return lastRetry
}

// connect is the life of one connection.
func (w *Watch) connect() error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: w.socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close() // nothing that was written to it matters any more
	w.mu.Lock()
	if w.isStopping() {
		w.mu.Unlock()
		return nil
	}
	w.conn = conn
	w.mu.Unlock()
	err = w.listen(conn)
	w.mu.Lock()
	w.conn = nil
	w.mu.Unlock()
	return err
}

func (w *Watch) isStopping() bool {
	select {
	case <-w.stopping:
		return true
	default:
		return false
	}
}

// trouble reports what is news; that a VMM's end ends its connection is not.
func (w *Watch) trouble(err error) {
	ended := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrDeadlineExceeded)
	if err == nil || ended && w.isStopping() || w.reports == maxReports {
		return
	}
	w.reports++
	w.ears.Report(fmt.Errorf("monitor: %w", err))
}

// set takes over what the machine does.
func (w *Watch) set(status, reason string) {
	if status == w.now.Status && reason == w.now.Reason {
		return
	}
	w.now = record.Machine{Status: status, Since: record.Now(), Reason: reason}
	w.ears.Changed(w.now)
}
