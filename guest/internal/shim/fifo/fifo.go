// Package fifo holds the named pipes between the shim and a VMM. Both sides open them for reading and writing, so that neither
// side's death is an end of file or a SIGPIPE for the other, and what is in the pipe waits for the next shim.
package fifo

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Make creates the FIFO, in place of a leftover.
func Make(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return fmt.Errorf("mkfifo %s: %w", path, err)
	}
	return nil
}

// OpenForProgram opens the end that a program inherits. O_NONBLOCK belongs to the open file and not to the descriptor, so this is
// a file of its own, blocking as a program expects it; what the program then sets does not touch the shim's.
func OpenForProgram(path string) (fd int, err error) {
	fd, err = syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	return fd, nil
}

// Open opens the shim's own end, on the runtime's poller.
func Open(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Mode()&os.ModeNamedPipe == 0 {
		err = fmt.Errorf("%s is not a FIFO", path)
	}
	if err != nil {
		_ = file.Close() // err is the news; nothing was written
		return nil, err
	}
	return file, nil
}
