package fifo

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// Drain takes everything out of a FIFO and hands it on, in order, until it is told to finish.
type Drain struct {
	file   *os.File
	sink   func([]byte)
	buffer []byte
	done   chan struct{}
	err    error
}

const (
	drainBufferBytes = 64 << 10
	// maxLeftBytes is the largest pipe an unprivileged process may have (fs.pipe-max-size): no more than this can be left over
	// from before the end, whatever some surviving child of the VMM still writes.
	maxLeftBytes = 1 << 20
)

// StartDrain begins; sink must return soon, since the VMM waits for it once the pipe is full.
func StartDrain(path string, sink func([]byte)) (*Drain, error) {
	file, err := Open(path)
	if err != nil {
		return nil, err
	}
	drain := &Drain{file: file, sink: sink, buffer: make([]byte, drainBufferBytes), done: make(chan struct{})}
	go drain.run()
	return drain, nil
}

// Finish takes what is still in the pipe and closes it. It is called once, when the VMM has ended.
func (d *Drain) Finish() error {
	// A deadline in the past stops the reading goroutine between two reads, so that nothing it read is lost.
	if err := d.file.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	<-d.done
	err := d.err
	if err == nil {
		err = d.takeRest()
	}
	if closeErr := d.file.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (d *Drain) run() {
	defer close(d.done)
	for {
		n, err := d.file.Read(d.buffer)
		d.sink(d.buffer[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			d.err = err
			return
		}
	}
}

// takeRest reads without waiting until the pipe is empty.
func (d *Drain) takeRest() error {
	raw, err := d.file.SyscallConn()
	if err != nil {
		return err
	}
	var readErr error
	err = raw.Control(func(fd uintptr) {
		for left := maxLeftBytes; left > 0; {
			n, err := syscall.Read(int(fd), d.buffer)
			if err == syscall.EINTR {
				continue
			}
			// EAGAIN: empty. The FIFO has no end of file, since this very descriptor can write to it.
			if err == syscall.EAGAIN {
				return
			}
			if err != nil {
				readErr = err
				return
			}
			d.sink(d.buffer[:n])
			left -= n
		}
	})
	if err != nil {
		return err
	}
	return readErr
}
