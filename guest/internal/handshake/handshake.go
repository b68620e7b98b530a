// Package handshake is the listening end of Firecracker's hybrid-vsock handshake on a Unix socket: for the shim's bridge, and for
// agents that are tried on a host without a machine around them.
package handshake

import (
	"fmt"
	"net"
)

// firstPort is where Firecracker begins to count the ports in its OK lines.
const firstPort = 1073741824

// Listener accepts connections whose handshake is over.
type Listener struct {
	net.Listener
	ready chan Conn
	ended chan error
}

// Conn is a connection to a port.
type Conn struct {
	net.Conn
	Port uint32
}

// Listen makes the socket at path. Handshakes run side by side: a client that says nothing holds nobody up.
func Listen(path string) (*Listener, error) {
	socket, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	l := &Listener{socket, make(chan Conn), make(chan error, 1)}
	go l.run()
	return l, nil
}

// Accept gives the next connection, a Conn.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.ready:
		return conn, nil
	case err := <-l.ended:
		l.ended <- err // for the next call
		return nil, err
	}
}

func (l *Listener) run() {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			l.ended <- err
			return
		}
		go func() {
			port, err := shake(conn)
			if err != nil {
				_ = conn.Close() // like Firecracker: without a word
				return
			}
			l.ready <- Conn{conn, port}
		}()
	}
}

// shake answers what was asked for.
func shake(conn net.Conn) (uint32, error) {
	port, err := ReadConnect(conn)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(conn, "OK %d\n", firstPort)
	return port, err
}
