package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

const (
	afVsock = 40         // linux/socket.h
	cidAny  = 0xffffffff // VMADDR_CID_ANY, linux/vm_sockets.h
	backlog = 128
)

// sockaddr is struct sockaddr_vm of linux/vm_sockets.h.
type sockaddr struct {
	family, _ uint16
	port, cid uint32
	flags     uint8
	_         [3]uint8
}

func listen(port uint32) (int, error) {
	fd, err := syscall.Socket(afVsock, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("cannot make a vsock socket: %w", err)
	}
	address := sockaddr{family: afVsock, port: port, cid: cidAny}
	_, _, errno := syscall.Syscall(syscall.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address))
	if errno != 0 {
		return -1, fmt.Errorf("cannot bind vsock port %d: %w", port, errno)
	}
	if err := syscall.Listen(fd, backlog); err != nil {
		return -1, fmt.Errorf("cannot listen on vsock port %d: %w", port, err)
	}
	return fd, nil
}

// accept gives a blocking descriptor: reads and writes on it are plain system calls.
func accept(listener int) (*os.File, error) {
	for {
		fd, _, errno := syscall.Syscall6(syscall.SYS_ACCEPT4, uintptr(listener), 0, 0, syscall.SOCK_CLOEXEC, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return nil, fmt.Errorf("cannot accept a connection: %w", errno)
		}
		return os.NewFile(fd, "vsock"), nil
	}
}
