// Package seriallink keeps the host's end of the serial protocol (SERIAL.md) on a VM's serial line, whatever becomes of the line:
// when it drops it is opened anew, and a new session begins.
package seriallink

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"bandsox.dev/guest/internal/serial"
	"bandsox.dev/guest/internal/shim/bridge"
)

const (
	// dialLimit is generous: this is the last way to the guest, and on a UART one round trip is most of a second when it is busy.
	dialLimit = 10 * time.Second
	// A line that drops is opened anew, after a pause that doubles.
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
	// maxReports bounds what one VMM can put into the shim's log by dropping its line.
	maxReports = 20
)

// Line is the host's side of a serial line.
type Line interface {
	// Open waits until the line may be used, at most until stopping is closed. What was opened before is closed by then.
	Open(stopping <-chan struct{}) (io.ReadWriteCloser, error)
	Coding() serial.Coding
}

// Statistics are of all sessions together.
type Statistics struct {
	// Up says that there is a session with the guest. What follows is of that session, and zero without one.
	Up                        bool
	RTT                       time.Duration
	WindowBytes, PayloadBytes int
	// The frames are of all sessions.
	FramesSent, FramesResent, FramesDamaged uint64
}

// Link is safe for use by many goroutines.
type Link struct {
	line   Line
	limit  time.Duration // of Dial
	report func(error)

	stopping chan struct{}
	done     chan struct{}

	mu sync.Mutex
	// host is nil while there is no line.
	host *serial.Host
	// changed is closed, and replaced, when host changes.
	changed chan struct{}
	held    bool
	// past is what earlier hosts have counted.
	past Statistics

	reports atomic.Int32
}

// Start begins to keep the line. held says that the machine does not run, as far as is known: see Hold.
func Start(line Line, held bool, report func(error)) *Link {
	link := &Link{
		line: line, held: held, limit: dialLimit, report: report,
		stopping: make(chan struct{}), done: make(chan struct{}), changed: make(chan struct{}),
	}
	go link.run()
	return link
}

// Dial opens a stream to a port of the guest.
func (l *Link) Dial(port uint32) (bridge.Conn, error) {
	deadline := time.Now().Add(l.limit)
	for {
		host, err := l.await(deadline)
		if err != nil {
			return nil, err
		}
		conn, err := host.Dial(port, time.Until(deadline))
		if err == nil {
			return conn, nil
		}
		select {
		case <-host.Done(): // it is the line that failed: there will be another
		default:
			return nil, err
		}
	}
}

// Hold stops the clocks of the protocol, since the machine stands still. It may be called again.
func (l *Link) Hold() { l.setHeld(true) }

// Resume starts them again. It may be called again.
func (l *Link) Resume() { l.setHeld(false) }

// Statistics are what is known of the link now.
func (l *Link) Statistics() Statistics {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.past
	if l.host != nil {
		now.add(l.host.Stats())
	}
	return now
}

// Close ends the link and every stream over it.
func (l *Link) Close() error {
	close(l.stopping)
	<-l.done
	return nil
}

func (l *Link) run() {
	defer close(l.done)
	for pause := firstPause; ; pause *= 2 {
		began := time.Now()
		err := l.serve()
		if time.Since(began) > lastPause {
			pause = firstPause
		}
		if pause > lastPause {
			pause = lastPause
		}
		select {
		case <-l.stopping:
			return
		case <-time.After(pause):
		}
		l.trouble(err)
	}
}

// serve is the life of one line.
func (l *Link) serve() error {
	line, err := l.line.Open(l.stopping)
	if err != nil {
		return err
	}
	host := serial.NewHost(line, serial.Settings{Coding: l.line.Coding(), Report: l.trouble})
	l.put(host)
	select {
	case <-l.stopping:
	case <-host.Done():
	}
	l.remove(host)
	err = host.Close()
	if cause := host.Err(); cause != nil {
		err = cause
	}
	return err
}

func (l *Link) put(host *serial.Host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held {
		host.Hold()
	}
	l.set(host)
}

func (l *Link) remove(host *serial.Host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.past.add(host.Stats())
	l.past = Statistics{
		FramesSent: l.past.FramesSent, FramesResent: l.past.FramesResent, FramesDamaged: l.past.FramesDamaged,
	}
	l.set(nil)
}

// set is called with the lock held.
func (l *Link) set(host *serial.Host) {
	l.host = host
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Link) setHeld(held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if held == l.held {
		return
	}
	l.held = held
	switch {
	case l.host == nil:
	case held:
		l.host.Hold()
	default:
		l.host.Resume()
	}
}

// await returns the host of a line that is open.
func (l *Link) await(deadline time.Time) (*serial.Host, error) {
	limit := time.NewTimer(time.Until(deadline))
	defer limit.Stop()
	for {
		l.mu.Lock()
		host, changed := l.host, l.changed
		l.mu.Unlock()
		if host != nil {
			select {
			case <-host.Done():
			default:
				return host, nil
			}
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil, fmt.Errorf("there is no serial line: not within %v", l.limit)
		case <-l.stopping:
			return nil, errStopping
		}
	}
}

// trouble reports what is news; that a VMM's end ends its line is not.
func (l *Link) trouble(err error) {
	if err == nil || errors.Is(err, errStopping) || l.reports.Add(1) > maxReports {
		return
	}
	l.report(fmt.Errorf("serial line: %w", err))
}

func (s *Statistics) add(host serial.Stats) {
	s.Up, s.RTT, s.WindowBytes, s.PayloadBytes = host.Up, host.RTT, host.WindowBytes, host.PayloadBytes
	s.FramesSent += host.FramesSent
	s.FramesResent += host.FramesResent
	s.FramesDamaged += host.FramesDamaged
}
