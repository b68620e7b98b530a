package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"bandsox.dev/guest/internal/agent/console"
)

// maxXattrs bounds what is read of one folder: the kernel's own limits for all names, and for one value.
const maxXattrs = 64 * 1024

// overlayXattrs are the overlay's own notes; in the image they would be lies.
const overlayXattrs = "trusted.overlay."

// makeUpper makes the writable layer's root folder once. An overlay shows its root with the attributes of this folder, so
// they must be those of the image's root.
func makeUpper(image, upper string) error {
	if _, err := os.Lstat(upper); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Under another name until it is whole: the machine may be killed in between, and then it is made again.
	unfinished := upper + ".new"
	if err := makeFolder(unfinished, 0o755); err != nil {
		return err
	}
	if err := copyAttributes(image, unfinished); err != nil {
		return fmt.Errorf("cannot give it the attributes of the image's root: %w", err)
	}
	return os.Rename(unfinished, upper)
}

func copyAttributes(from, to string) error {
	var stat syscall.Stat_t
	if err := syscall.Lstat(from, &stat); err != nil {
		return err
	}
	if err := syscall.Chown(to, int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	if err := syscall.Chmod(to, stat.Mode&0o7777); err != nil { // after chown, which clears setgid
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	return syscall.UtimesNano(to, []syscall.Timespec{stat.Atim, stat.Mtim})
}

func copyXattrs(from, to string) error {
	names := make([]byte, maxXattrs)
	count, err := syscall.Listxattr(from, names)
	if errors.Is(err, syscall.ENOTSUP) {
		return nil // a kernel without them has none to copy
	}
	if err != nil {
		return err
	}
	value := make([]byte, maxXattrs)
	for _, name := range strings.Split(string(names[:count]), "\x00") {
		if name == "" || strings.HasPrefix(name, overlayXattrs) {
			continue
		}
		size, err := syscall.Getxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		// The image chose it: one that this kernel does not take must not keep the machine from booting.
		if err := syscall.Setxattr(to, name, value[:size], 0); err != nil {
			console.Printf("the root folder loses its attribute %q: %v", name, err)
		}
	}
	return nil
}
