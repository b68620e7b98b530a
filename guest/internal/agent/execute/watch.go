package execute

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// forever is no limit of time.
const forever = time.Duration(0)

// watch waits for several descriptors at once without holding a thread: an epoll set that is itself on the runtime's poller.
//
// poll(2) would be one call instead of a handful, but a goroutine in a blocking call keeps the processor (of which a machine
// with one CPU has one) until the runtime's monitor takes it away, and the monitor is slow by choice (package quiet).
type watch struct {
	set   *os.File
	raw   syscall.RawConn
	fd    int // set's; File.Fd would make it a blocking one
	pidFD int
}

// newWatch watches a process and its output.
func newWatch(pidFD int, streams []stream) (*watch, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make an epoll set: %w", err)
	}
	add := func(member int) {
		if err == nil {
			event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(member)}
			err = syscall.EpollCtl(fd, syscall.EPOLL_CTL_ADD, member, &event)
		}
	}
	add(pidFD)
	for _, s := range streams {
		add(s.fd)
	}
	if err == nil {
		err = syscall.SetNonblock(fd, true) // os.NewFile puts only such a one on the poller
	}
	w := &watch{set: os.NewFile(uintptr(fd), "epoll"), fd: fd, pidFD: pidFD}
	if err == nil {
		w.raw, err = w.set.SyscallConn()
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("cannot watch a process: %w", err)
	}
	return w, nil
}

// wait returns when a stream has something, the process has ended, or the time is over. It says whether the process has ended.
// It panics on what can only be a bug, which ends the connection and the command.
func (w *watch) wait(limit time.Duration) bool {
	deadline := time.Time{}
	if limit != forever {
		deadline = time.Now().Add(limit)
	}
	if err := w.set.SetReadDeadline(deadline); err != nil {
		panic(err)
	}
	ended := false
	err := w.raw.Read(func(fd uintptr) bool {
		var events [3]syscall.EpollEvent
		n, err := syscall.EpollWait(int(fd), events[:], 0)
		if err != nil && err != syscall.EINTR {
			panic(err)
		}
		for i := 0; i < n; i++ {
			ended = ended || int(events[i].Fd) == w.pidFD
		}
		return n != 0
	})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		panic(err)
	}
	return ended
}

// forget takes a descriptor out of the set. Closing it is not enough: a child between fork and exec holds it open as well,
// and the set would go on telling of it.
func (w *watch) forget(fd int) {
	if err := syscall.EpollCtl(w.fd, syscall.EPOLL_CTL_DEL, fd, nil); err != nil {
		panic(err)
	}
}

func (w *watch) close() {
	if err := w.set.Close(); err != nil {
		panic(err)
	}
}
