package jailer

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	oldRoot    = "old_root"
	folderMode = 0o700
	// memory and misc devices of the kernel's admin-guide/devices.txt
	memMajor, urandomMinor        = 1, 9
	miscMajor, kvmMinor, tunMinor = 10, 232, 200
)

// folders are made in the jail and given to the program's user, each in turn: chown is not recursive. Its other folders are not.
var folders = []string{"/", "/dev", "/dev/net", "/run"}

// copyProgram puts the program into the jail, over a file that is there, but not through a link of either kind.
func (o *options) copyProgram() error {
	target := filepath.Join(o.root, o.execName())
	source, err := os.Open(o.execFile)
	if err != nil {
		return fmt.Errorf("Failed to open %s: %s", o.execFile, osError(err))
	}
	defer source.Close() // it was only read
	info, err := source.Stat()
	if err != nil {
		return fmt.Errorf("Cannot get metadata for a file: %s: %s", o.execFile, osError(err))
	}
	file, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, info.Mode().Perm())
	if err != nil {
		return fmt.Errorf("Failed to open %s: %s", target, osError(err))
	}
	defer file.Close() // an error of its writing has shown itself
	made, err := file.Stat()
	if err != nil {
		return fmt.Errorf("Cannot get metadata for a file: %s: %s", target, osError(err))
	}
	if made.Sys().(*syscall.Stat_t).Nlink > 1 {
		return fmt.Errorf("Detected hard link at: %s", target)
	}
	if err := file.Chown(int(o.uid), int(o.gid)); err != nil {
		return fmt.Errorf("Failed to change owner for %s: %s", target, osError(err))
	}
	if _, err := io.Copy(file, source); err != nil {
		return fmt.Errorf("Failed to copy %s to %s: %s", o.execFile, target, osError(err))
	}
	return nil
}

func (o *options) joinNetwork() error {
	if o.netns == "" {
		return nil
	}
	fd, err := syscall.Open(o.netns, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("Failed to open file %s: %s", o.netns, osError(err))
	}
	defer syscall.Close(fd)
	if _, _, errno := syscall.RawSyscall(sysSetns, uintptr(fd), syscall.CLONE_NEWNET, 0); errno != 0 {
		return fmt.Errorf("Failed to join network namespace: netns: %s", osError(errno))
	}
	return nil
}

func (o *options) setLimits() error {
	if o.fileSize != nil {
		if err := setLimit(syscall.RLIMIT_FSIZE, *o.fileSize, "size of file"); err != nil {
			return err
		}
	}
	return setLimit(syscall.RLIMIT_NOFILE, o.openFiles, "number of file descriptors")
}

func setLimit(resource int, value uint64, name string) error {
	if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: value, Max: value}); err != nil {
		return fmt.Errorf("Failed to set limit for resource: %s", name)
	}
	return nil
}

// enter makes the jail's folder the root of this thread's own mount namespace, and forgets the old one.
func (o *options) enter() error {
	for _, step := range []struct {
		failure string
		do      func() error
	}{
		{"Failed to unshare into new mount namespace", func() error { return syscall.Unshare(syscall.CLONE_NEWNS) }},
		{"Failed to change the propagation type to slave", func() error {
			return syscall.Mount("", "/", "", syscall.MS_SLAVE|syscall.MS_REC, "")
		}},
		{"Failed to bind mount the jail root directory", func() error {
			return syscall.Mount(o.root, o.root, "", syscall.MS_BIND|syscall.MS_REC, "")
		}},
		{"Failed to change current directory", func() error { return syscall.Chdir(o.root) }},
		{"Failed to create the jail root directory before pivoting root", func() error { return syscall.Mkdir(oldRoot, 0o600) }},
		{"Failed to pivot root", func() error { return syscall.PivotRoot(".", oldRoot) }},
		{"Failed to chdir into chroot directory", func() error { return syscall.Chdir("/") }},
		{"Failed to unmount the old jail root", func() error { return syscall.Unmount(oldRoot, syscall.MNT_DETACH) }},
		{"Failed to remove old jail root directory", func() error { return syscall.Rmdir(oldRoot) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %s", step.failure, osError(err))
		}
	}
	return nil
}

// furnish makes folders and devices in the jail. A device that is there already is an error: so a jail is used once.
func (o *options) furnish(userfaultfd int) error {
	for _, folder := range folders {
		if err := os.MkdirAll(folder, 0o777); err != nil {
			return fmt.Errorf("Failed to create directory %s: %s", folder, osError(err))
		}
		if err := os.Chmod(folder, folderMode); err != nil {
			return fmt.Errorf("Failed to change permissions on %s: %s", folder, osError(err))
		}
		if err := o.own(folder); err != nil {
			return err
		}
	}
	if err := o.makeDevice("/dev/net/tun", miscMajor, tunMinor); err != nil {
		return err
	}
	if err := o.makeDevice("/dev/kvm", miscMajor, kvmMinor); err != nil {
		return err
	}
	if err := o.makeDevice("/dev/urandom", memMajor, urandomMinor); err != nil {
		fmt.Printf("Warning! Could not create /dev/urandom device inside jailer: %v.\n", err)
		fmt.Println("MMDS version 2 will not be available to use.")
	}
	if userfaultfd < 0 {
		return nil
	}
	return o.makeDevice("/dev/userfaultfd", miscMajor, userfaultfd)
}

func (o *options) makeDevice(path string, major, minor int) error {
	number := major<<8 | minor&0xff | minor&^0xff<<12
	if err := syscall.Mknod(path, syscall.S_IFCHR|syscall.S_IRUSR|syscall.S_IWUSR, number); err != nil {
		return fmt.Errorf("Failed to create %s via mknod inside the jail: %s", path, osError(err))
	}
	return o.own(path)
}

func (o *options) own(path string) error {
	if err := os.Chown(path, int(o.uid), int(o.gid)); err != nil {
		return fmt.Errorf("Failed to change owner for %s: %s", path, osError(err))
	}
	return nil
}

// userfaultfdMinor is -1 where the host has no such device. Like the jailer, it overlooks a number of fewer than three digits, which
// has spaces in front.
func userfaultfdMinor() int {
	text, err := os.ReadFile("/proc/misc")
	if err != nil {
		return -1
	}
	for _, line := range strings.Split(string(text), "\n") {
		words := strings.Split(line, " ")
		if len(words) < 2 || words[1] != "userfaultfd" {
			continue
		}
		if minor, err := strconv.Atoi(words[0]); err == nil {
			return minor
		}
		return -1
	}
	return -1
}
