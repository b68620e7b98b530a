package serialline

import (
	"io"
	"os"
	"syscall"
)

// port is a virtio-serial port.
type port struct {
	*os.File
	raw syscall.RawConn
}

func openPort(device string) (*port, error) {
	file, err := openDevice(device)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close() // err is the news
		return nil, err
	}
	return &port{file, raw}, nil
}

// Read waits while no host is connected, which the kernel tells by an end of file: the next host is another wake-up of the same
// device, and what it says is for its session to tell apart.
func (p *port) Read(data []byte) (n int, err error) {
	if len(data) == 0 {
		return 0, nil
	}
	waitErr := p.raw.Read(func(fd uintptr) bool {
		for {
			n, err = syscall.Read(int(fd), data)
			if err != syscall.EINTR {
				return err != syscall.EAGAIN && !(err == nil && n == 0)
			}
		}
	})
	if waitErr != nil {
		return 0, waitErr
	}
	if err != nil {
		return 0, &os.PathError{Op: "read", Path: p.Name(), Err: err}
	}
	return n, nil
}

var _ io.ReadWriteCloser = (*port)(nil)
