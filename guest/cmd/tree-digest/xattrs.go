package main

import (
	"encoding/hex"
	"fmt"
	"strings"
	"syscall"
	"unsafe"
)

// overlayPrefix begins the names that an overlayfs keeps for itself in its upper layer.
const overlayPrefix = "trusted.overlay."

// readXattrs reads those of the path itself, also where it is a symbolic link, which package syscall cannot.
func readXattrs(place string) (map[string]string, error) {
	list, err := readGrowing(func(buffer []byte) (uintptr, syscall.Errno) {
		return callOn(syscall.SYS_LLISTXATTR, place, nil, buffer)
	})
	if err == syscall.ENOTSUP {
		return nil, nil // this file system has none
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list xattrs of %s: %w", place, err)
	}
	values := map[string]string{}
	for _, name := range strings.Split(strings.TrimRight(string(list), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, overlayPrefix) {
			continue
		}
		value, err := readGrowing(func(buffer []byte) (uintptr, syscall.Errno) {
			return callOn(syscall.SYS_LGETXATTR, place, &name, buffer)
		})
		if err != nil {
			return nil, fmt.Errorf("cannot read xattr %s of %s: %w", name, place, err)
		}
		values[escape(name)] = hex.EncodeToString(value)
	}
	return values, nil
}

// readGrowing asks for the size, then for the bytes, and again when they have grown between.
func readGrowing(call func(buffer []byte) (uintptr, syscall.Errno)) ([]byte, error) {
	for {
		size, errno := call(nil)
		if errno != 0 {
			return nil, errno
		}
		if size == 0 {
			return nil, nil
		}
		buffer := make([]byte, size)
		size, errno = call(buffer)
		if errno == syscall.ERANGE {
			continue
		}
		if errno != 0 {
			return nil, errno
		}
		return buffer[:size], nil
	}
}

// callOn makes one of the system calls that take a path, perhaps a name, and a buffer.
func callOn(number uintptr, place string, name *string, buffer []byte) (uintptr, syscall.Errno) {
	placePointer, err := syscall.BytePtrFromString(place)
	if err != nil {
		return 0, syscall.EINVAL
	}
	var bufferPointer *byte
	if len(buffer) > 0 {
		bufferPointer = &buffer[0]
	}
	if name == nil {
		size, _, errno := syscall.Syscall6(number, uintptr(unsafe.Pointer(placePointer)),
			uintptr(unsafe.Pointer(bufferPointer)), uintptr(len(buffer)), 0, 0, 0)
		return size, errno
	}
	namePointer, err := syscall.BytePtrFromString(*name)
	if err != nil {
		return 0, syscall.EINVAL
	}
	size, _, errno := syscall.Syscall6(number, uintptr(unsafe.Pointer(placePointer)),
		uintptr(unsafe.Pointer(namePointer)), uintptr(unsafe.Pointer(bufferPointer)), uintptr(len(buffer)), 0, 0)
	return size, errno
}
