package shim

import (
	"fmt"
	"syscall"

	"bandsox.dev/guest/internal/shim/config"
	"bandsox.dev/guest/internal/shim/ownsocket"
)

// openInherited opens the VMM's descriptors from 3 on. On failure none stays open.
func openInherited(files []config.File) ([]int, error) {
	var opened []int
	for _, file := range files {
		fd, err := openOne(file)
		if err != nil {
			return nil, firstError(fmt.Errorf("%s%s: %w", file.Listen, file.Open, err), closeAll(opened))
		}
		opened = append(opened, fd)
	}
	return opened, nil
}

func openOne(file config.File) (int, error) {
	if file.Open != "" {
		return syscall.Open(file.Open, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	}
	return ownsocket.ListenForProgram(file.Listen)
}

func closeAll(fds []int) error {
	var first error
	for _, fd := range fds {
		first = firstError(first, syscall.Close(fd))
	}
	return first
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
