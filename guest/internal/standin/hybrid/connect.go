package hybrid

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"
)

const (
	// maxConnectBytes is how much of a line the real one looks at.
	maxConnectBytes = 32
	// minConnectBytes is "connect 0\n".
	minConnectBytes = 10
)

var errConnect = errors.New("no CONNECT line in one piece")

// readConnect takes the line that names the guest's port, and not one byte more. The line must be there in one piece.
func readConnect(host *net.UnixConn) (uint32, error) {
	raw, err := host.SyscallConn()
	if err != nil {
		return 0, err
	}
	line := make([]byte, maxConnectBytes)
	var failure error
	err = raw.Control(func(fd uintptr) {
		n, _, err := syscall.Recvfrom(int(fd), line, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err != nil {
			failure = err
			return
		}
		end := lineEnd(line[:n])
		if end == 0 {
			failure = errConnect
			return
		}
		line = line[:end]
		_, _, failure = syscall.Recvfrom(int(fd), line, syscall.MSG_DONTWAIT)
	})
	if err == nil {
		err = failure
	}
	if err != nil {
		return 0, err
	}
	return parseConnect(line)
}

// lineEnd is how many bytes are the line; 0 when it is not whole. One that is too long ends where the looking ends.
func lineEnd(seen []byte) int {
	for i := minConnectBytes - 1; i < len(seen); i++ {
		if seen[i] == '\n' || i == maxConnectBytes-1 {
			return i + 1
		}
	}
	return 0
}

func parseConnect(line []byte) (uint32, error) {
	words := strings.Fields(string(line))
	if !utf8.Valid(line) || len(words) < 2 || strings.ToLower(words[0]) != "connect" {
		return 0, errConnect
	}
	number, err := strconv.ParseUint(strings.TrimPrefix(words[1], "+"), 10, 32)
	return uint32(number), err
}
