package control

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// errHungUp says that the client went away while the VMM was not taking its input.
var errHungUp = errors.New("the client is gone")

const (
	// inputBufferBytes is how much of a client's input is under way to the VMM; more waits in the client's socket.
	inputBufferBytes = 4096
	// hangUpCheckInterval is how often a client whose input waits for the VMM is looked at: nothing else would show its going.
	hangUpCheckInterval = 250 * time.Millisecond
)

// copyToConsole passes a client's input on at the pace of the VMM. Only this client waits: input is an end of its own.
func copyToConsole(input *os.File, from io.Reader, hasHungUp func() bool) error {
	buffer := make([]byte, inputBufferBytes)
	for {
		n, readErr := from.Read(buffer)
		for data := buffer[:n]; len(data) > 0; {
			if err := input.SetWriteDeadline(time.Now().Add(hangUpCheckInterval)); err != nil {
				return err
			}
			written, err := input.Write(data)
			data = data[written:]
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
			if len(data) > 0 && hasHungUp() {
				return errHungUp
			}
		}
		if readErr != nil {
			return readErr
		}
	}
}

// hasHungUp tells whether the client has closed the connection both ways, unread input or not.
func (c *client) hasHungUp() bool {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return true
	}
	// struct pollfd of poll(2); POLLHUP needs no asking for.
	var request struct {
		fd      int32
		events  int16
		revents int16
	}
	const pollHup = 0x10
	err = raw.Control(func(fd uintptr) {
		request.fd = int32(fd)
		// An interrupted call leaves revents 0, which the next look makes up for.
		_, _, _ = syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&request)), 1,
			uintptr(unsafe.Pointer(&syscall.Timespec{})), 0, 0, 0)
	})
	return err != nil || request.revents&pollHup != 0
}
