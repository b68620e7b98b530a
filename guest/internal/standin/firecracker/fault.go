package firecracker

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// fault is an answer that says no: a fault_message.
type fault struct {
	text string
	// isFatal ends the process after the answer, with status 1.
	isFatal bool
}

func (f *fault) Error() string { return f.text }

func refuse(format string, args ...any) error { return &fault{text: fmt.Sprintf(format, args...)} }

// What is said to any request at a wrong time.
var (
	errBeforeStart = refuse("The requested operation is not supported before starting the microVM.")
	errAfterStart  = refuse("The requested operation is not supported after starting the microVM.")
	errNoPCI       = refuse("PCI is not enabled")
)

// osError is an error of the system as Rust prints it.
func osError(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fmt.Sprintf("%s (os error %d)", sentence(errno), int(errno))
	}
	return err.Error()
}

// sentence is the C library's text, where Go's begins with a small letter.
func sentence(errno syscall.Errno) string {
	text := errno.Error()
	return string(text[0]-'a'+'A') + text[1:]
}

// readable says why a file cannot be opened, or nil.
func readable(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return file.Close()
}
