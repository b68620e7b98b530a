package boot

import (
	"strings"
	"syscall"
)

// UsualHosts is what /etc/hosts holds where the image has none.
const UsualHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

// ownAddress begins the line that gives the machine its own name.
const ownAddress = "127.0.1.1\t"

// IsOwnHosts says that a sandbox's /etc/hosts differs from its image's only by what Identify adds: lines for the names that the
// machine has had.
func IsOwnHosts(hosts, image string) bool {
	lines := strings.Split(strings.TrimRight(hosts, "\n"), "\n")
	for len(lines) > 0 && isOwnName(lines[len(lines)-1]) {
		lines = lines[:len(lines)-1]
	}
	if image == "" {
		image = UsualHosts
	}
	return strings.Join(lines, "\n") == strings.TrimRight(image, "\n")
}

func isOwnName(line string) bool {
	return strings.HasPrefix(line, ownAddress) && len(strings.Fields(line)) == 2
}

// Layer is a sandbox's writable layer in another machine: by itself, what lies below it, and both as the sandbox saw them.
type Layer struct{ Upper, Image, Merged string }

// MountLayer mounts the disks of a sandbox that does not run, for who reads them. The layer's must be a copy: its journal is
// replayed, and the overlay takes it into use, as only so it finds files that have several names in the image.
func MountLayer(image, layer string) (Layer, error) {
	for _, device := range []string{image, layer} {
		if err := waitForDevice(device); err != nil {
			return Layer{}, err
		}
	}
	below, err := mountImage(image)
	if err != nil {
		return Layer{}, err
	}
	flags := uintptr(noExecNoSuid | syscall.MS_NOATIME)
	if err := (mount{layer, rwFolder, "ext4", flags, ""}).do(); err != nil {
		return Layer{}, err
	}
	if err := mountOverlay(below); err != nil {
		return Layer{}, err
	}
	return Layer{Upper: rwFolder + "/upper", Image: below, Merged: newRoot}, nil
}
