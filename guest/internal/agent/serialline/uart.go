package serialline

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	// frameStart begins a frame of the text-safe coding (SERIAL.md).
	frameStart = 0x1e
	// lookInterval is how often a silent terminal is looked at: a program may have changed its modes, and then nothing comes through.
	lookInterval = time.Second
)

// uart is a terminal that is the machine's console as well.
type uart struct {
	*os.File
	raw syscall.RawConn
	// heard is set by each Read.
	heard   atomic.Bool
	closed  chan struct{}
	closing sync.Once
}

// openUART opens a terminal, and tells the host that it may speak from now on: before, the terminal would have echoed all of it.
func openUART(device string) (*uart, error) {
	file, err := openDevice(device)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close() // err is the news
		return nil, err
	}
	line := &uart{File: file, raw: raw, closed: make(chan struct{})}
	err = line.makeRaw()
	if err == nil {
		_, err = line.Write([]byte{frameStart})
	}
	if err != nil {
		_ = file.Close() // err is the news
		return nil, err
	}
	go line.keepRaw()
	return line, nil
}

func (u *uart) Read(data []byte) (int, error) {
	n, err := u.File.Read(data)
	u.heard.Store(true)
	return n, err
}

// Close ends a waiting Read.
func (u *uart) Close() error {
	u.closing.Do(func() { close(u.closed) })
	return u.File.Close()
}

// keepRaw looks after the modes while nothing comes.
func (u *uart) keepRaw() {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	for {
		select {
		case <-u.closed:
			return
		case <-look.C:
			if !u.heard.Swap(false) {
				_ = u.makeRaw() // a terminal that is gone shows itself in Read
			}
		}
	}
}

// makeRaw lets every byte in as it comes. What goes out is left as it is: line ends of the console's text are translated, and no
// byte of a frame is one.
func (u *uart) makeRaw() error {
	var now syscall.Termios
	if err := u.control(syscall.TCGETS, &now); err != nil {
		return err
	}
	wanted := rawInput(now)
	if wanted == now {
		return nil
	}
	return u.control(syscall.TCSETS, &wanted)
}

// hardwareFlow is CRTSCTS of asm-generic/termbits-common.h.
const hardwareFlow = 0x80000000

func rawInput(modes syscall.Termios) syscall.Termios {
	modes.Iflag &^= syscall.IGNBRK | syscall.BRKINT | syscall.PARMRK | syscall.INPCK | syscall.ISTRIP | syscall.INLCR |
		syscall.IGNCR | syscall.ICRNL | syscall.IUCLC | syscall.IXON | syscall.IXOFF
	modes.Lflag &^= syscall.ISIG | syscall.ICANON | syscall.IEXTEN | syscall.ECHO | syscall.ECHONL
	modes.Cflag &^= syscall.CSIZE | syscall.PARENB | hardwareFlow
	modes.Cflag |= syscall.CS8 | syscall.CREAD | syscall.CLOCAL
	modes.Cc[syscall.VMIN], modes.Cc[syscall.VTIME] = 1, 0
	return modes
}

func (u *uart) control(call uintptr, modes *syscall.Termios) error {
	var errno syscall.Errno
	err := u.raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, call, uintptr(unsafe.Pointer(modes)))
	})
	if err == nil && errno != 0 {
		err = fmt.Errorf("cannot set the modes of %s: %w", u.Name(), errno)
	}
	return err
}
