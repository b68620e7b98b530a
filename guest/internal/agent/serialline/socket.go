package serialline

import (
	"net"
	"sync"
)

// Socket is a line to whoever is connected to a listening socket, one at a time, as a VMM gives it to its guest: nobody connected
// is silence, and what was under way when one left is lost.
type Socket struct {
	listener net.Listener

	mu     sync.Mutex
	here   *sync.Cond // of mu: conn or closed has changed
	conn   net.Conn   // nil while nobody is connected
	closed bool
}

// ListenOn begins to accept connections.
func ListenOn(listener net.Listener) *Socket {
	socket := &Socket{listener: listener}
	socket.here = sync.NewCond(&socket.mu)
	go socket.accept()
	return socket
}

func (s *Socket) accept() {
	for {
		conn, err := s.listener.Accept()
		s.mu.Lock()
		for err == nil && s.conn != nil && !s.closed {
			s.here.Wait()
		}
		if err != nil || s.closed {
			s.closed = true
			s.here.Broadcast()
			s.mu.Unlock()
			if err == nil {
				_ = conn.Close() // it was never used
			}
			return
		}
		s.conn = conn
		s.here.Broadcast()
		s.mu.Unlock()
	}
}

// Read waits while nobody is connected.
func (s *Socket) Read(data []byte) (int, error) {
	for {
		conn, err := s.current()
		if err != nil {
			return 0, err
		}
		n, err := conn.Read(data)
		if err != nil {
			s.drop(conn)
		}
		if n > 0 || err == nil {
			return n, nil
		}
	}
}

// Write waits while nobody is connected; what is left when one goes is for the next.
func (s *Socket) Write(data []byte) (int, error) {
	for written := 0; ; {
		conn, err := s.current()
		if err != nil {
			return written, err
		}
		n, err := conn.Write(data[written:])
		written += n
		if err == nil {
			return written, nil
		}
		s.drop(conn)
	}
}

func (s *Socket) current() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.conn == nil && !s.closed {
		s.here.Wait()
	}
	if s.closed {
		return nil, net.ErrClosed
	}
	return s.conn, nil
}

func (s *Socket) drop(conn net.Conn) {
	_ = conn.Close() // its other end is gone
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn {
		s.conn = nil
		s.here.Broadcast()
	}
}

// Close ends the line and the listening.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.here.Broadcast()
	if s.conn != nil {
		_ = s.conn.Close() // what is lost with it is what a line loses
	}
	return s.listener.Close()
}
