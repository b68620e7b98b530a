package onefile

import (
	"fmt"
	"syscall"
	"unsafe"
)

// Of seccomp(2); package syscall was frozen before it.
const (
	sysSeccomp      = 317
	setModeFilter   = 1
	newListener     = 1 << 3
	retAllow        = 0x7fff0000
	retUserNotif    = 0x7fc00000
	retErrno        = 0x00050000
	auditArchX86_64 = 0xc000003e
)

// Offsets in struct seccomp_data; of each argument the low half, all that an int has.
const (
	dataNumber    = 0
	dataArch      = 4
	dataArguments = 16
)

// Operations of a filter: struct sock_filter.
const (
	load        = 0x20 // BPF_LD | BPF_W | BPF_ABS
	jumpIfEqual = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
	give        = 0x06 // BPF_RET | BPF_K
)

func argument(index uint32) uint32 { return dataArguments + 8*index }

// filter asks for an open with O_RDWR alone, and keeps fallocate off the descriptor. Jumps count from the next operation.
var filter = []syscall.SockFilter{
	0:  {Code: load, K: dataArch},
	1:  {Code: jumpIfEqual, K: auditArchX86_64, Jf: 9}, // of another architecture: not of a VMM of ours
	2:  {Code: load, K: dataNumber},
	3:  {Code: jumpIfEqual, K: syscall.SYS_FALLOCATE, Jt: 8},
	4:  {Code: jumpIfEqual, K: syscall.SYS_OPENAT, Jt: 3},
	5:  {Code: jumpIfEqual, K: syscall.SYS_OPEN, Jf: 5},
	6:  {Code: load, K: argument(1)},
	7:  {Code: jumpIfEqual, K: syscall.O_RDWR, Jt: 2, Jf: 3},
	8:  {Code: load, K: argument(2)},
	9:  {Code: jumpIfEqual, K: syscall.O_RDWR, Jf: 1},
	10: {Code: give, K: retUserNotif},
	11: {Code: give, K: retAllow},
	12: {Code: load, K: argument(0)},
	13: {Code: jumpIfEqual, K: Descriptor, Jf: 1},
	14: {Code: give, K: retErrno}, // of 0: success
	15: {Code: give, K: retAllow},
}

// Install puts the filter on this thread, which must have no_new_privs, and so on the program that it execs. It returns the
// descriptor at which the kernel asks, for the shim.
func Install() (listener int, err error) {
	program := syscall.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := syscall.RawSyscall(sysSeccomp, setModeFilter, newListener, uintptr(unsafe.Pointer(&program)))
	if errno == syscall.EINVAL || errno == syscall.ENOSYS {
		return -1, ErrUnsupported
	}
	if errno != 0 {
		return -1, fmt.Errorf("seccomp: %w", errno)
	}
	listener = int(fd)
	if err := check(listener); err != nil {
		return -1, err // who cannot go on ends, and the listener with it
	}
	return listener, nil
}
