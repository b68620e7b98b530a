package vsock

import (
	"fmt"
	"syscall"
	"unsafe"
)

// VhostDevice is the kernel's backend. Who has it open can be the host's side of one guest's vsock.
const VhostDevice = "/dev/vhost-vsock"

// setGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h.
const setGuestCID = 0x4008af60

// SetGuestCID gives an open VhostDevice its guest's address, for as long as it is open in any process; once more is no error. Its
// error wraps syscall.EADDRINUSE when another guest has the address, or when it is this machine's own in the machine that it runs in.
func SetGuestCID(device int, cid uint32) error {
	wide := uint64(cid)
	for {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(device), setGuestCID, uintptr(unsafe.Pointer(&wide)))
		switch errno {
		case 0:
			return nil
		case syscall.EINTR:
			continue
		}
		return fmt.Errorf("cannot give a guest the CID %d: %w", cid, errno)
	}
}
