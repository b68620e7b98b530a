package pack

import (
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// The system calls that take a folder's descriptor and a name in it, so that no symbolic link on the way is followed.

const (
	atNoFollow  = 0x100     // AT_SYMLINK_NOFOLLOW
	atRemoveDir = 0x200     // AT_REMOVEDIR
	utimeOmit   = 1<<30 - 2 // UTIME_OMIT
	openFolder  = syscall.O_RDONLY | syscall.O_DIRECTORY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	// maxXattrBytes is the kernel's bound of one value and of a list (XATTR_SIZE_MAX, XATTR_LIST_MAX).
	maxXattrBytes = 65536
)

func pointer(name string) (unsafe.Pointer, error) {
	bytes, err := syscall.BytePtrFromString(name)
	return unsafe.Pointer(bytes), err
}

// failed makes of a system call's number an error, or none. The calls are written out where they are made: a pointer that becomes a
// number earlier would not keep what it points to.
func failed(errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

func statAt(folder int, name string) (stat syscall.Stat_t, err error) {
	path, err := pointer(name)
	if err != nil {
		return stat, err
	}
	_, _, errno := syscall.Syscall6(sysFstatat, uintptr(folder), uintptr(path), uintptr(unsafe.Pointer(&stat)), atNoFollow, 0, 0)
	return stat, failed(errno)
}

func openAt(folder int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := syscall.Openat(folder, name, flags|syscall.O_CLOEXEC, mode)
		if err != syscall.EINTR {
			return fd, err
		}
	}
}

func readLinkAt(folder int, name string) (string, error) {
	path, err := pointer(name)
	if err != nil {
		return "", err
	}
	buffer := make([]byte, syscall.PathMax+1)
	n, _, errno := syscall.Syscall6(syscall.SYS_READLINKAT, uintptr(folder), uintptr(path), uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)), 0, 0)
	if errno != 0 {
		return "", errno
	}
	return string(buffer[:n]), nil
}

func symlinkAt(target string, folder int, name string) error {
	to, err := pointer(target)
	if err != nil {
		return err
	}
	path, err := pointer(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall(syscall.SYS_SYMLINKAT, uintptr(to), uintptr(folder), uintptr(path))
	return failed(errno)
}

func linkAt(fromFolder int, from string, folder int, name string) error {
	old, err := pointer(from)
	if err != nil {
		return err
	}
	path, err := pointer(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall6(syscall.SYS_LINKAT, uintptr(fromFolder), uintptr(old), uintptr(folder), uintptr(path), 0, 0)
	return failed(errno)
}

func removeAt(folder int, name string, flags int) error {
	path, err := pointer(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall(syscall.SYS_UNLINKAT, uintptr(folder), uintptr(path), uintptr(flags))
	return failed(errno)
}

func chownAt(folder int, name string, uid, gid int64) error {
	return syscall.Fchownat(folder, name, int(uid), int(gid), atNoFollow)
}

// setTimeAt sets the time of the last change; that of the last access is now, or left.
func setTimeAt(folder int, name string, seconds, nanoseconds int64) error {
	path, err := pointer(name)
	if err != nil {
		return err
	}
	times := [2]syscall.Timespec{{Nsec: utimeOmit}, {Sec: seconds, Nsec: nanoseconds}}
	_, _, errno := syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(folder), uintptr(path), uintptr(unsafe.Pointer(&times)), atNoFollow, 0, 0)
	return failed(errno)
}

func setTime(fd int, seconds, nanoseconds int64) error {
	times := [2]syscall.Timespec{{Nsec: utimeOmit}, {Sec: seconds, Nsec: nanoseconds}}
	_, _, errno := syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	return failed(errno)
}

func syncFileSystem(fd int) error {
	_, _, errno := syscall.Syscall(sysSyncfs, uintptr(fd), 0, 0)
	return failed(errno)
}

// isKept says which extended attributes travel: those of users, and a program's capabilities. The others belong to the system.
func isKept(name string) bool {
	return strings.HasPrefix(name, "user.") || name == "security.capability"
}

func readXattrs(fd int, keeps func(name string) bool) (map[string]string, error) {
	list, err := growing(func(buffer []byte) (uintptr, error) {
		n, _, errno := syscall.Syscall(syscall.SYS_FLISTXATTR, uintptr(fd), uintptr(start(buffer)), uintptr(len(buffer)))
		return n, failed(errno)
	})
	if err == syscall.ENOTSUP || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var xattrs map[string]string
	for _, name := range strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if name == "" || !keeps(name) {
			continue
		}
		value, err := readXattr(fd, name)
		if err == syscall.ENODATA {
			continue // taken away meanwhile
		}
		if err != nil {
			return nil, err
		}
		if xattrs == nil {
			xattrs = map[string]string{}
		}
		xattrs[name] = string(value)
	}
	return xattrs, nil
}

func readXattr(fd int, name string) ([]byte, error) {
	key, err := pointer(name)
	if err != nil {
		return nil, err
	}
	return growing(func(buffer []byte) (uintptr, error) {
		n, _, errno := syscall.Syscall6(syscall.SYS_FGETXATTR, uintptr(fd), uintptr(key), uintptr(start(buffer)), uintptr(len(buffer)), 0, 0)
		return n, failed(errno)
	})
}

// growing asks for the size first, which is nothing for most files, and again when it has grown meanwhile.
func growing(ask func([]byte) (uintptr, error)) ([]byte, error) {
	for {
		size, err := ask(nil)
		if err != nil || size == 0 {
			return nil, err
		}
		buffer := make([]byte, size)
		n, err := ask(buffer)
		if err != syscall.ERANGE {
			return buffer[:n&(2*maxXattrBytes-1)], err
		}
	}
}

func start(buffer []byte) unsafe.Pointer {
	if len(buffer) == 0 {
		return nil
	}
	return unsafe.Pointer(&buffer[0])
}

func writeXattr(fd int, name, value string) error {
	key, err := pointer(name)
	if err != nil {
		return err
	}
	bytes := append([]byte(value), 0) // never empty, so that it has an address
	_, _, errno := syscall.Syscall6(syscall.SYS_FSETXATTR, uintptr(fd), uintptr(key), uintptr(unsafe.Pointer(&bytes[0])), uintptr(len(value)), 0, 0)
	return failed(errno)
}

// names lists a folder, without closing it.
func names(fd int) ([]string, error) {
	own, err := openAt(fd, ".", openFolder, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(own), "folder")
	defer file.Close()
	return file.Readdirnames(-1)
}

func isFolder(stat syscall.Stat_t) bool { return stat.Mode&syscall.S_IFMT == syscall.S_IFDIR }
