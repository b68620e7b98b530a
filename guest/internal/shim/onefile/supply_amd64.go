package onefile

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// Calls at the listener: <linux/seccomp.h>.
const (
	ioctlReceive = 0xc0502100
	ioctlSend    = 0xc0182101
	ioctlIsValid = 0x40082102
	ioctlAdd     = 0x40182103

	addAsNumber  = 1 << 0 // SECCOMP_ADDFD_FLAG_SETFD
	addAndAnswer = 1 << 1 // SECCOMP_ADDFD_FLAG_SEND: in two calls, the program may be interrupted in between
	goOn         = 1 << 0 // SECCOMP_USER_NOTIF_FLAG_CONTINUE

	// workingDirectory is AT_FDCWD, as an int.
	workingDirectory = 0xffffff9c
)

// notification is struct seccomp_notif.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	// struct seccomp_data
	number    int32
	arch      uint32
	ip        uint64
	arguments [6]uint64
}

// answer is struct seccomp_notif_resp.
type answer struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// addition is struct seccomp_notif_addfd.
type addition struct {
	id       uint64
	flags    uint32
	from     uint32
	to       uint32
	newFlags uint32
}

// check says ErrUnsupported where the kernel has no way to give the program a descriptor (before Linux 5.14).
func check(listener int) error {
	request := addition{flags: addAsNumber | addAndAnswer, from: uint32(listener), to: Descriptor}
	// Of a question that there is not: all but that it would have done.
	if err := call(listener, ioctlAdd, unsafe.Pointer(&request)); err != syscall.ENOENT {
		return ErrUnsupported
	}
	return nil
}

// Supply answers until the program has opened the file at path, or has ended, and closes the listener. Both have the same working
// directory, and path is as the program says it.
func Supply(listener int, path string) (err error) {
	defer func() {
		if closeErr := syscall.Close(listener); err == nil {
			err = closeErr
		}
	}()
	var doubt error
	for {
		isThere, err := await(listener)
		if err != nil {
			return err
		}
		if !isThere {
			return doubt
		}
		var asked notification
		err = call(listener, ioctlReceive, unsafe.Pointer(&asked))
		if err == syscall.ENOENT || err == syscall.EINTR {
			continue // it was interrupted, or killed, and asks again or never
		}
		if err != nil {
			return fmt.Errorf("seccomp's listener: %w", err)
		}
		isMeant, err := isFor(listener, asked, path)
		if isMeant {
			isDone, err := supply(listener, asked.id, path)
			if isDone || err != nil {
				return err
			}
			continue
		}
		if doubt == nil {
			doubt = err
		}
		err = call(listener, ioctlSend, unsafe.Pointer(&answer{id: asked.id, flags: goOn}))
		if err != nil && err != syscall.ENOENT {
			return fmt.Errorf("seccomp's listener: %w", err)
		}
	}
}

// isFor reads the path in the program's memory. What another thread of it makes of the path meanwhile does not matter: there is only
// one file to be had.
func isFor(listener int, asked notification, path string) (isMeant bool, err error) {
	address := asked.arguments[0]
	if asked.number == syscall.SYS_OPENAT {
		if uint32(asked.arguments[0]) != workingDirectory {
			return false, nil
		}
		address = asked.arguments[1]
	}
	memory, err := os.Open("/proc/" + strconv.Itoa(int(asked.pid)) + "/mem")
	if err != nil {
		return false, fmt.Errorf("cannot see what the program opens: %w", err)
	}
	defer memory.Close() // it was only read
	// Only now is it certain that the pid is still the program's.
	if call(listener, ioctlIsValid, unsafe.Pointer(&asked.id)) != nil {
		return false, nil
	}
	text := make([]byte, len(path)+1)
	n, err := memory.ReadAt(text, int64(address))
	if n == 0 {
		return false, fmt.Errorf("cannot see what the program opens: %w", err)
	}
	return string(text) == path+"\x00", nil // a shorter one, at the end of what can be read, is another
}

// supply returns false when the program was interrupted: it asks again.
func supply(listener int, id uint64, path string) (isDone bool, err error) {
	file, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
	if err != nil {
		number, isNumber := err.(syscall.Errno)
		if !isNumber {
			number = syscall.EIO
		}
		_ = call(listener, ioctlSend, unsafe.Pointer(&answer{id: id, err: -int32(number)})) // the program says what it misses
		return false, fmt.Errorf("%s: %w", path, err)
	}
	defer syscall.Close(file) // the program has its own
	given := addition{
		id: id, flags: addAsNumber | addAndAnswer, from: uint32(file), to: Descriptor, newFlags: syscall.O_CLOEXEC,
	}
	err = call(listener, ioctlAdd, unsafe.Pointer(&given))
	if err == syscall.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot give the program %s: %w", path, err)
	}
	return true, nil
}

// await returns when the kernel asks, or, with false, when nobody is left who could.
func await(listener int) (isThere bool, err error) {
	const pollIn = 0x1
	// struct pollfd of poll(2).
	request := struct {
		fd      int32
		events  int16
		revents int16
	}{fd: int32(listener), events: pollIn}
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&request)), 1, 0, 0, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return false, fmt.Errorf("seccomp's listener: %w", errno)
		}
		return request.revents&pollIn != 0, nil
	}
}

// call returns a bare errno, or nil.
func call(listener int, request uintptr, about unsafe.Pointer) error {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(listener), request, uintptr(about))
	if errno != 0 {
		return errno
	}
	return nil
}
