package ownsocket

import (
	"fmt"
	"net"
	"syscall"
)

// oPath is O_PATH of open(2), which package syscall does not have.
const oPath = 0x200000

// Dial connects to a socket that a VMM has made in a folder where it may write. The VMM may have been taken over by its guest: a link
// to somebody else's socket is not followed, since the shim may open what the VMM may not. path's folder is not the VMM's to replace.
func Dial(path string) (*net.UnixConn, error) {
	fd, err := syscall.Open(path, oPath|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "unix", Addr: &net.UnixAddr{Name: path, Net: "unix"}, Err: err}
	}
	defer syscall.Close(fd) // a descriptor that only names: closing loses nothing
	var status syscall.Stat_t
	if err := syscall.Fstat(fd, &status); err != nil {
		return nil, err
	}
	if status.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
		return nil, fmt.Errorf("%s is no socket", path)
	}
	// What the descriptor names, whatever has become of the path since.
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d", fd), Net: "unix"})
}
