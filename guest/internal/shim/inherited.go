package shim

import (
	"errors"
	"fmt"
	"syscall"

	"bandsox.dev/guest/internal/shim/config"
	"bandsox.dev/guest/internal/shim/ownsocket"
	"bandsox.dev/guest/internal/vsock"
)

// openInherited opens the VMM's descriptors from 3 on. On failure none stays open.
func openInherited(files []config.File) ([]int, error) {
	var opened []int
	for _, file := range files {
		fd, err := openOne(file)
		if err != nil {
			return nil, firstError(fmt.Errorf("%s%s%s: %w", file.Listen, file.Open, file.Read, err), closeAll(opened))
		}
		opened = append(opened, fd)
	}
	return opened, nil
}

func openOne(file config.File) (int, error) {
	if file.Open != "" {
		return syscall.Open(file.Open, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	}
	if file.Read != "" {
		return syscall.Open(file.Read, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
	}
	return ownsocket.ListenForProgram(file.Listen)
}

// claimCID gives the VMM's vhost device the guest's CID, before the VMM does the same. CIDs are the whole host's, not one manager's:
// the kernel refuses one that another VM has, and here that can be told from whatever else ends a VMM at its start. What is claimed
// belongs to the open device, and so to the VMM until its end.
func claimCID(settings *config.Config, opened []int) error {
	if settings.Vsock == nil || settings.Vsock.Kind != config.VsockKernel {
		return nil
	}
	for i, file := range settings.Files {
		if file.Open != vsock.VhostDevice {
			continue
		}
		err := vsock.SetGuestCID(opened[i], settings.Vsock.CID)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fail(codeCIDInUse, "CID %d belongs to another machine of this host", settings.Vsock.CID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func closeAll(fds []int) error {
	var first error
	for _, fd := range fds {
		first = firstError(first, syscall.Close(fd))
	}
	return first
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
