package jailer

import (
	"syscall"
	"unsafe"
)

// Calls that package syscall, which was frozen before them, does not have on every architecture.
const sysCloseRange = 436 // the same on all; since Linux 5.9

// Clocks of clock_gettime(2).
const (
	clockMonotonic = 1
	clockProcess   = 2
)

// monotonicUs reads a clock in microseconds. It cannot fail with a clock that there is.
func monotonicUs(clock uintptr) int64 {
	var now syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&now)), 0)
	return now.Nano() / 1000
}
