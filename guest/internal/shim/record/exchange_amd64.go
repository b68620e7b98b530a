package record

import (
	"syscall"
	"unsafe"
)

// Numbers that package syscall does not have: renameat2(2) and its flag.
const (
	sysRenameat2   = 316
	renameExchange = 2
)

// exchange gives two files each other's name, at once. It returns a bare errno, or nil.
func exchange(one, other string) error {
	first, err := syscall.BytePtrFromString(one)
	if err != nil {
		return err
	}
	second, err := syscall.BytePtrFromString(other)
	if err != nil {
		return err
	}
	const workingDirectory = -100 // AT_FDCWD
	directory := workingDirectory
	_, _, errno := syscall.Syscall6(sysRenameat2, uintptr(directory), uintptr(unsafe.Pointer(first)),
		uintptr(directory), uintptr(unsafe.Pointer(second)), renameExchange, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
