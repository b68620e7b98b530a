package procid

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"
)

// System calls newer than the syscall package; the numbers are the same on every architecture.
const (
	sysPidfdSendSignal = 424 // Linux 5.1
	sysPidfdOpen       = 434 // Linux 5.3
)

// Handle holds on to one process: whatever becomes of its pid, a signal sent through it reaches that process or nobody.
type Handle struct {
	ID    ID
	pidfd int
}

// Open takes hold of the process, or says ErrGone.
func Open(id ID) (*Handle, error) {
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(id.Pid), 0, 0)
	if errno == syscall.ESRCH {
		return nil, ErrGone
	}
	if errno != 0 {
		return nil, fmt.Errorf("pidfd_open of %d: %w", id.Pid, errno)
	}
	handle := &Handle{ID: id, pidfd: int(fd)}
	// Only now is it certain which process the descriptor means: the pid may have been reused before it was opened.
	alive, err := id.IsAlive()
	if err == nil && !alive {
		err = ErrGone
	}
	if err != nil {
		_ = handle.Close() // err is the news; a descriptor that was never used closes without loss
		return nil, err
	}
	return handle, nil
}

// Signal sends to the process; ErrGone when it has ended and was reaped.
func (h *Handle) Signal(signal syscall.Signal) error {
	_, _, errno := syscall.Syscall6(sysPidfdSendSignal, uintptr(h.pidfd), uintptr(signal), 0, 0, 0, 0)
	if errno == syscall.ESRCH {
		return ErrGone
	}
	if errno != 0 {
		return fmt.Errorf("%v to process %d: %w", signal, h.ID.Pid, errno)
	}
	return nil
}

// Wait returns when the process has ended. It reaps nothing.
func (h *Handle) Wait() error {
	_, err := h.poll(nil)
	return err
}

// WaitFor is Wait with a limit; false when the process still runs after it.
func (h *Handle) WaitFor(limit time.Duration) (ended bool, err error) {
	deadline := time.Now().Add(limit)
	for {
		left := time.Until(deadline)
		if left < 0 {
			left = 0
		}
		timeout := syscall.NsecToTimespec(int64(left))
		ended, err := h.poll(&timeout)
		if err != nil || ended || left == 0 {
			return ended, err
		}
	}
}

// Close lets go of the process. Nothing may be waiting on the handle.
func (h *Handle) Close() error {
	return syscall.Close(h.pidfd)
}

// poll waits until the descriptor is readable, which a pidfd is when its process has ended; nil waits for ever.
func (h *Handle) poll(timeout *syscall.Timespec) (readable bool, err error) {
	// struct pollfd of poll(2).
	request := struct {
		fd      int32
		events  int16
		revents int16
	}{fd: int32(h.pidfd), events: pollIn}
	for {
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&request)), 1,
			uintptr(unsafe.Pointer(timeout)), 0, 0, 0)
		// The runtime's own signals interrupt the call.
		if errno == syscall.EINTR && timeout == nil {
			continue
		}
		if errno == syscall.EINTR {
			return false, nil
		}
		if errno != 0 {
			return false, fmt.Errorf("poll of process %d: %w", h.ID.Pid, errno)
		}
		return n > 0, nil
	}
}

const pollIn = 0x1
