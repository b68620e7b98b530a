package links

import (
	"syscall"
	"unsafe"
)

// noCID is VMADDR_CID_ANY, which a kernel without a transport says.
const noCID = 0xffffffff

func askCID(fd int) *uint32 {
	var cid uint32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), getLocalCID, uintptr(unsafe.Pointer(&cid)))
	if errno != 0 || cid == noCID {
		return nil
	}
	return &cid
}
