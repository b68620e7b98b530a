package handshake

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// maxConnectBytes is Firecracker's limit for the line, its newline included.
	maxConnectBytes = 32
	connectLimit    = 2 * time.Second
)

// ReadConnect reads the line that names the guest's port, and not one byte more: those after it are for the guest.
//
// Firecracker wants the line in one piece; this waits for the rest for a moment.
func ReadConnect(host net.Conn) (port uint32, err error) {
	if err := host.SetReadDeadline(time.Now().Add(connectLimit)); err != nil {
		return 0, err
	}
	line := make([]byte, 0, maxConnectBytes)
	for len(line) == 0 || line[len(line)-1] != '\n' {
		if len(line) == maxConnectBytes {
			return 0, fmt.Errorf("no newline within %d bytes", maxConnectBytes)
		}
		next := line[len(line) : len(line)+1]
		if _, err := io.ReadFull(host, next); err != nil {
			return 0, err
		}
		line = line[:len(line)+1]
	}
	if err := host.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	return parseConnect(line)
}

// parseConnect takes what Firecracker takes: any case, any white space between words, and anything after the port.
//
// See read_local_stream_port in Firecracker's vsock/unix/muxer.rs.
func parseConnect(line []byte) (port uint32, err error) {
	// "connect 0\n" is the shortest.
	const minConnectBytes = 10
	if len(line) < minConnectBytes || !utf8.Valid(line) {
		return 0, errors.New("not a line of text, or too short")
	}
	words := strings.Fields(string(line))
	if len(words) < 2 || strings.ToLower(words[0]) != "connect" {
		return 0, errors.New("not CONNECT and a port")
	}
	number, err := strconv.ParseUint(words[1], 10, 32)
	return uint32(number), err
}
