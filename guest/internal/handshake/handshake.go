// Package handshake is the listening end of Firecracker's hybrid-vsock handshake on a Unix socket, so that agents can be tried
// on a host without a machine around them.
package handshake

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	// maxLineBytes is Firecracker's own bound for the CONNECT line.
	maxLineBytes = 32
	lineTimeout  = 5 * time.Second
	// firstPort is where Firecracker begins to count the ports in its OK lines.
	firstPort = 1073741824
)

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

// shake reads the line byte by byte: what follows it belongs to the protocol.
func shake(conn net.Conn) (uint32, error) {
	if err := conn.SetReadDeadline(time.Now().Add(lineTimeout)); err != nil {
		return 0, err
	}
	var line []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(line), "\n"); line = append(line, one[0]) {
		if len(line) == maxLineBytes {
			return 0, errors.New("the CONNECT line does not end")
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			return 0, err
		}
	}
	words := strings.Fields(string(line))
	if len(words) != 2 || words[0] != "CONNECT" {
		return 0, fmt.Errorf("%q is no CONNECT line", line)
	}
	port, err := strconv.ParseUint(words[1], 10, 32)
	if err != nil {
		return 0, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(conn, "OK %d\n", firstPort)
	return uint32(port), err
}
