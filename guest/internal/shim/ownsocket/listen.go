// Package ownsocket listens on Unix sockets that only this user may connect to.
package ownsocket

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
)

// mode is what a socket file gets. It is set on the socket before bind(2), which makes the file with it: there is no moment with
// another mode, and no path to follow, as with chmod(2).
const mode = 0o600

// Listen listens at path, in place of a socket that was left behind. Closing the listener does not remove the file: whoever ends the
// VM's life removes all of its files, at one place.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	settings := net.ListenConfig{Control: func(_, _ string, socket syscall.RawConn) error {
		var chmodErr error
		err := socket.Control(func(fd uintptr) { chmodErr = syscall.Fchmod(int(fd), mode) })
		if err != nil {
			return err
		}
		return chmodErr
	}}
	listener, err := settings.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	unixListener := listener.(*net.UnixListener)
	unixListener.SetUnlinkOnClose(false)
	return unixListener, nil
}

// ListenForProgram makes a listening socket for a program to inherit: a blocking descriptor that nothing here watches.
func ListenForProgram(path string) (fd int, err error) {
	fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := bindAndListen(fd, path); err != nil {
		_ = syscall.Close(fd) // err is the news
		return -1, err
	}
	return fd, nil
}

func bindAndListen(fd int, path string) error {
	if err := syscall.Fchmod(fd, mode); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	// backlog is how many connections may wait for a program that has not come to its socket yet.
	const backlog = 16
	return os.NewSyscallError("listen", syscall.Listen(fd, backlog))
}
