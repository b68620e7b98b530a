package seriallink

import (
	"errors"
	"io"
	"net"

	"bandsox.dev/guest/internal/serial"
)

// errStopping is no trouble: nobody wants the line any more.
var errStopping = errors.New("the VM has ended")

// Port is a virtio-serial port, whose far end the VMM has at a Unix socket. The VMM takes one client at a time.
type Port struct{ Socket string }

// Open connects to the VMM. The socket's backlog takes the connection before the VMM is there.
func (p Port) Open(stopping <-chan struct{}) (io.ReadWriteCloser, error) {
	select {
	case <-stopping:
		return nil, errStopping
	default:
		return net.DialUnix("unix", nil, &net.UnixAddr{Name: p.Socket, Net: "unix"})
	}
}

// Coding is Raw: a port takes every byte as it is.
func (p Port) Coding() serial.Coding { return serial.Raw }
