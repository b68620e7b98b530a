package boot

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"bandsox.dev/guest/internal/agent/console"
)

// mount is one mount(2) onto a folder that is made when it is missing, as in an image "from scratch".
type mount struct {
	source  string
	target  string
	kind    string
	flags   uintptr
	options string
}

func (m mount) do() error {
	if err := makeFolder(m.target, 0o755); err != nil {
		return fmt.Errorf("cannot mount %s: %w", m.target, err)
	}
	if err := syscall.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil {
		return fmt.Errorf("cannot mount %s on %s (%s): %w", m.source, m.target, m.options, err)
	}
	return nil
}

func makeFolder(path string, mode os.FileMode) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

const noExecNoSuid = syscall.MS_NOSUID | syscall.MS_NOEXEC | syscall.MS_NODEV

// EarlyMounts are what the agent itself needs in the initramfs: the command line, devices.
func EarlyMounts() error {
	for _, m := range []mount{
		{"proc", "/proc", "proc", noExecNoSuid, ""},
		{"sys", "/sys", "sysfs", noExecNoSuid, ""},
		{"dev", "/dev", "devtmpfs", syscall.MS_NOSUID, "mode=755"},
	} {
		// EBUSY: the kernel has mounted it (CONFIG_DEVTMPFS_MOUNT).
		if err := m.do(); err != nil && !errors.Is(err, syscall.EBUSY) {
			return err
		}
	}
	return nil
}

// SystemMounts are what programs expect in the new root. One that fails is logged: the image may not care.
func SystemMounts() {
	for _, m := range []mount{
		{"proc", "/proc", "proc", noExecNoSuid, ""},
		{"sys", "/sys", "sysfs", noExecNoSuid, ""},
		{"dev", "/dev", "devtmpfs", syscall.MS_NOSUID, "mode=755"},
		{"devpts", "/dev/pts", "devpts", syscall.MS_NOSUID | syscall.MS_NOEXEC, "newinstance,gid=5,mode=620,ptmxmode=666"},
		{"shm", "/dev/shm", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", noExecNoSuid, ""},
		{"mqueue", "/dev/mqueue", "mqueue", noExecNoSuid, ""},
	} {
		if err := m.do(); err != nil {
			console.Printf("%v", err)
		}
	}
	for _, link := range [][2]string{
		{"pts/ptmx", "/dev/ptmx"}, {"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"},
	} {
		if err := replaceByLink(link[0], link[1]); err != nil {
			console.Printf("cannot make %s: %v", link[1], err)
		}
	}
	for _, folder := range []struct {
		path string
		mode uint32
	}{{"/tmp", 0o1777}, {"/run", 0o755}} {
		if err := makeMissingFolder(folder.path, folder.mode); err != nil {
			console.Printf("cannot make %s: %v", folder.path, err)
		}
	}
}

// replaceByLink takes the kernel's own node away first, as devtmpfs has for ptmx.
func replaceByLink(target, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(target, path)
}

// makeMissingFolder leaves alone what an image has, whatever its mode.
func makeMissingFolder(path string, mode uint32) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return syscall.Chmod(path, mode) // not os.Chmod: its sticky bit is not the kernel's
}
