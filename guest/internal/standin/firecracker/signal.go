package firecracker

import (
	"os"
	"syscall"
	"time"
	"unsafe"
)

// dieBy ends the process by a signal, whose handler is taken away from Go's runtime first: that would print all goroutines at SIGABRT.
func dieBy(sig syscall.Signal) {
	const (
		maskBytes = 8
		attempts  = 20
		pause     = 20 * time.Millisecond
	)
	var action [32]byte // struct kernel_sigaction of zeros: SIG_DFL
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, maskBytes, 0, 0)
	for i := 0; i < attempts; i++ {
		_ = syscall.Kill(os.Getpid(), sig) // what is left to do when it fails is the caller's
		time.Sleep(pause)
	}
}
