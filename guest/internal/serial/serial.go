// Package serial carries many connections over one serial line between a guest and its host: a virtio-serial port, or a UART that
// is the console at the same time. protocol/SERIAL.md is its specification; package frame has the codings, datalink makes the line
// reliable, mux parts it into streams.
package serial

import (
	"io"
	"net"
	"time"

	"bandsox.dev/guest/internal/serial/datalink"
	"bandsox.dev/guest/internal/serial/mux"
)

// Coding is how frames are written on a line.
type Coding int

const (
	Raw  Coding = iota // as they are, on a line of 8 clean bits
	Text               // seven bits in a byte, between and in a console's text
)

// Settings of either end.
type Settings struct {
	Coding Coding
	// AcceptPort says whether a guest takes a stream to a port. Nil: any. It must not block.
	AcceptPort func(port uint32) bool
	// Report hears what ended a session and what the other end must not have sent. It must not block.
	Report func(error)
	// Contain, when there is one, is deferred at the top of each goroutine, and recovers from a panic: the agent is process 1.
	Contain func(whileDoing string, release ...func())
}

// What Dial fails with, besides what ended the line.
var (
	ErrRefused        = mux.ErrRefused
	ErrNoSession      = mux.ErrNoSession
	ErrNoAnswer       = mux.ErrNoAnswer
	ErrTooManyStreams = mux.ErrTooManyStreams
)

// Stats is how a host's end does. Counts are of its whole life.
type Stats struct {
	datalink.State
	StreamsOpen   int
	StreamsOpened uint64
}

// end is what both have.
type end struct {
	link *datalink.Link
	mux  *mux.Mux
}

func start(line io.ReadWriteCloser, s Settings, guest bool) end {
	m := mux.New(guest, s.AcceptPort)
	link := datalink.New(line, datalink.Settings{Guest: guest, Text: s.Coding == Text, Report: s.Report, Contain: s.Contain}, m)
	m.Attach(link)
	link.Start()
	return end{link, m}
}

// Done is closed when the line has failed or Close was called; Err says which.
func (e *end) Done() <-chan struct{} { return e.link.Done() }

// Err is what ended this end: the line's error, or net.ErrClosed after Close. Nil while it works.
func (e *end) Err() error { return e.link.Err() }

// Up says whether the other end is there.
func (e *end) Up() bool {
	e.link.Lock()
	defer e.link.Unlock()
	return e.link.Up()
}

// Close ends every stream and closes the line.
func (e *end) Close() error { return e.link.Close() }

// Host is the shim's end of a line.
type Host struct{ end }

// NewHost takes a line over and greets the guest until it answers. The line's Read and Write block; an error of either, io.EOF
// included, ends the Host for good: another connection of the line is another Host.
func NewHost(line io.ReadWriteCloser, s Settings) *Host { return &Host{start(line, s, false)} }

// Dial opens a stream to a port of the guest, and waits for a session and the answer as long as limit.
func (h *Host) Dial(port uint32, limit time.Duration) (net.Conn, error) {
	return h.mux.Dial(port, limit)
}

// Hold stops all clocks while the machine stands still, so that nothing is taken for lost or dead.
func (h *Host) Hold() { h.link.Hold() }

// Resume lets them go on.
func (h *Host) Resume() { h.link.Resume() }

// Stats says how it does.
func (h *Host) Stats() Stats {
	h.link.Lock()
	defer h.link.Unlock()
	s := Stats{State: h.link.State()}
	s.StreamsOpen, s.StreamsOpened = h.mux.Streams()
	return s
}

// Guest is the agent's end of a line: a net.Listener.
type Guest struct{ end }

// NewGuest takes a line over and answers hosts, one after another.
func NewGuest(line io.ReadWriteCloser, s Settings) *Guest { return &Guest{start(line, s, true)} }

// Accept gives the next stream; net.ErrClosed after Close or the line's end.
func (g *Guest) Accept() (net.Conn, error) { return g.mux.Accept() }

// Addr names the line.
func (g *Guest) Addr() net.Addr { return mux.Addr{} }
