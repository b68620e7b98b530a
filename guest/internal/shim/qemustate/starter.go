package qemustate

import (
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// starterGone is closed when the process dies that has started this one: nobody wants the state then, and QEMU, which sends it, is to
// hear of that, so that its machine can go on. Call the result's stop once nobody waits for it.
func starterGone() (gone <-chan struct{}, stop func(), err error) {
	// The kernel keeps the wish with the thread.
	runtime.LockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	if _, _, number := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0); number != 0 {
		signal.Stop(signals)
		return nil, nil, os.NewSyscallError("prctl", number)
	}
	closed, done := make(chan struct{}), make(chan struct{})
	go func() {
		select {
		case <-signals:
			close(closed)
		case <-done:
		}
	}()
	return closed, func() { signal.Stop(signals); close(done) }, nil
}

// closeWhen ends the waiting for what comes from closer. Call stop once nobody waits for it.
func closeWhen(gone <-chan struct{}, closer io.Closer) (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-gone:
			_ = closer.Close() // whoever waits for it hears of it
		case <-done:
		}
	}()
	return func() { close(done) }
}
