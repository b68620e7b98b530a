package hybrid

import (
	"net"
	"sync"
)

// Port is one that the guest listens on.
type Port struct {
	device  *Device
	number  uint32
	waiting chan net.Conn
	closed  chan struct{}
	closing sync.Once
}

// Accept gives the next connection; net.ErrClosed after Close.
func (p *Port) Accept() (net.Conn, error) {
	select {
	case conn := <-p.waiting:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close ends the listening; what was accepted lives on.
func (p *Port) Close() error {
	p.closing.Do(func() {
		p.device.mutex.Lock()
		defer p.device.mutex.Unlock()
		delete(p.device.ports, p.number)
		close(p.closed)
	})
	return nil
}

// offer says whether there was room for one more that waits.
func (p *Port) offer(conn net.Conn) bool {
	select {
	case p.waiting <- conn:
		return true
	default:
		return false
	}
}
