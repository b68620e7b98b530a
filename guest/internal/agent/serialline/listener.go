package serialline

import (
	"io"
	"net"
	"sync"

	"bandsox.dev/guest/internal/serial"
)

// Listener accepts the host's streams over a serial line. As with a socket, those that were accepted outlive its Close.
type Listener struct {
	guest   *serial.Guest
	streams chan net.Conn
	// ended is closed with the line.
	ended   chan struct{}
	closed  chan struct{}
	closing sync.Once
}

// Listen begins to speak the serial protocol on a line.
func Listen(line io.ReadWriteCloser, settings serial.Settings) *Listener {
	listener := &Listener{
		guest:   serial.NewGuest(line, settings),
		streams: make(chan net.Conn), ended: make(chan struct{}), closed: make(chan struct{}),
	}
	go listener.run()
	return listener
}

func (l *Listener) run() {
	defer close(l.ended)
	for {
		stream, err := l.guest.Accept()
		if err != nil {
			return
		}
		select {
		case l.streams <- stream:
		case <-l.closed:
			_ = stream.Close() // refused; nothing was exchanged
		}
	}
}

// Accept gives the next stream; net.ErrClosed after Close, or when the line has ended.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case stream := <-l.streams:
		return stream, nil
	case <-l.closed:
	case <-l.ended:
	}
	return nil, net.ErrClosed
}

// Close refuses further streams.
func (l *Listener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return nil
}

// Up says whether a host is there.
func (l *Listener) Up() bool { return l.guest.Up() }

// End ends the line and every stream over it.
func (l *Listener) End() error {
	err := l.guest.Close()
	<-l.ended
	return err
}
