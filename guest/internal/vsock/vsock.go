// Package vsock opens AF_VSOCK stream sockets as net.Conn and net.Listener, on the runtime's poller.
//
// The standard library knows no AF_VSOCK: net.FileConn refuses the family. os.NewFile takes any descriptor, and puts a
// non-blocking one on the poller, so that deadlines work and Close ends a waiting Read.
package vsock

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	family    = 40         // AF_VSOCK, linux/socket.h
	cidAny    = 0xffffffff // VMADDR_CID_ANY, linux/vm_sockets.h
	sockFlags = syscall.SOCK_STREAM | syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	// backlog is how many connections may wait to be accepted; Firecracker closes what does not fit without a word.
	backlog = 1024
)

// Addr names one end of a connection.
type Addr struct{ CID, Port uint32 }

// Network is "vsock".
func (Addr) Network() string { return "vsock" }

func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// sockaddr is struct sockaddr_vm of linux/vm_sockets.h.
type sockaddr struct {
	family, _ uint16
	port, cid uint32
	flags     uint8
	_         [3]uint8
}

// Conn is a connection. SyscallConn gives its descriptor to who must wait for it in another way.
type Conn struct {
	*os.File
	local, remote Addr
}

// LocalAddr is the end on this machine, as far as it is known.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the other end.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// CloseWrite tells the other end that nothing more comes; reading goes on.
func (c *Conn) CloseWrite() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var shutdownErr error
	if err := raw.Control(func(fd uintptr) { shutdownErr = syscall.Shutdown(int(fd), syscall.SHUT_WR) }); err != nil {
		return err
	}
	return shutdownErr
}

// Listener accepts connections to a port.
type Listener struct {
	file   *os.File
	raw    syscall.RawConn
	addr   Addr
	closed int32 // atomic
}

// Listen accepts connections to port from any CID. Its error wraps syscall.EAFNOSUPPORT or ENODEV where there is no vsock.
func Listen(port uint32) (*Listener, error) {
	fd, err := syscall.Socket(family, sockFlags, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make a vsock socket: %w", err)
	}
	if err := withAddress(syscall.SYS_BIND, fd, cidAny, port); err != nil {
		return nil, closing(fd, fmt.Errorf("cannot bind vsock port %d: %w", port, err))
	}
	if err := syscall.Listen(fd, backlog); err != nil {
		return nil, closing(fd, fmt.Errorf("cannot listen on vsock port %d: %w", port, err))
	}
	file := os.NewFile(uintptr(fd), "vsock listener")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("cannot wait on vsock port %d: %w", port, err)
	}
	return &Listener{file: file, raw: raw, addr: Addr{CID: cidAny, Port: port}}, nil
}

// Accept waits for the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	var peer sockaddr
	var fd uintptr
	var errno syscall.Errno
	err := l.raw.Read(func(listening uintptr) bool {
		for {
			size := unsafe.Sizeof(peer)
			fd, _, errno = syscall.Syscall6(syscall.SYS_ACCEPT4, listening, uintptr(unsafe.Pointer(&peer)),
				uintptr(unsafe.Pointer(&size)), syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0, 0)
			if errno != syscall.EINTR && errno != syscall.ECONNABORTED {
				return errno != syscall.EAGAIN
			}
		}
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil && atomic.LoadInt32(&l.closed) != 0 {
		err = net.ErrClosed // the poller's own error has no name outside the standard library
	}
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.addr, Err: err}
	}
	return &Conn{os.NewFile(fd, "vsock"), l.addr, Addr{CID: peer.cid, Port: peer.port}}, nil
}

// Close ends Accept with net.ErrClosed. Connections that were accepted live on.
func (l *Listener) Close() error {
	atomic.StoreInt32(&l.closed, 1)
	return l.file.Close()
}

// Addr is the listening address.
func (l *Listener) Addr() net.Addr { return l.addr }

// Dial connects to a port of a machine (2 is the host). The kernel itself gives up after two seconds without an answer
// (SO_VM_SOCKETS_CONNECT_TIMEOUT); ECONNRESET says that nobody listens there.
func Dial(cid, port uint32) (*Conn, error) {
	fd, err := syscall.Socket(family, sockFlags, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make a vsock socket: %w", err)
	}
	conn := &Conn{File: os.NewFile(uintptr(fd), "vsock"), remote: Addr{CID: cid, Port: port}}
	err = withAddress(syscall.SYS_CONNECT, fd, cid, port)
	if err == syscall.EINPROGRESS {
		err = conn.finishConnect()
	}
	if err != nil {
		err = fmt.Errorf("cannot connect to vsock %d:%d: %w", cid, port, err)
		if closeErr := conn.Close(); closeErr != nil {
			err = fmt.Errorf("%w (and then: %v)", err, closeErr)
		}
		return nil, err
	}
	return conn, nil
}

// finishConnect waits on the poller until a connect that is under way has ended.
func (c *Conn) finishConnect() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	waitErr := raw.Write(func(fd uintptr) bool {
		code, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		if err != nil || code != 0 {
			if result = err; result == nil {
				result = syscall.Errno(code)
			}
			return true
		}
		// No error yet is not yet a connection: only a connected socket has a peer.
		var peer sockaddr
		size := unsafe.Sizeof(peer)
		_, _, errno := syscall.Syscall(syscall.SYS_GETPEERNAME, fd, uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)))
		if errno == syscall.ENOTCONN {
			return false
		}
		if errno != 0 {
			result = errno
		}
		return true
	})
	if waitErr != nil {
		return waitErr
	}
	return result
}

// withAddress makes the system calls that take a socket and an address.
func withAddress(call uintptr, fd int, cid, port uint32) error {
	address := sockaddr{family: family, port: port, cid: cid}
	for {
		_, _, errno := syscall.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address))
		switch errno {
		case 0:
			return nil
		case syscall.EINTR:
			continue
		}
		return errno
	}
}

// closing closes a socket that could not be used, and keeps the first error.
func closing(fd int, cause error) error {
	if err := syscall.Close(fd); err != nil {
		return fmt.Errorf("%w (and then: %v)", cause, err)
	}
	return cause
}
