package freezer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// group is a control group, by its folder: a path would lead through mounts that the guest's user may have changed.
type group struct{ folder *os.File }

// maxFileBytes bounds what is read of a control group's file: one with the numbers of all processes is the longest.
const maxFileBytes = 1 << 20

// atRemoveFolder is AT_REMOVEDIR of linux/fcntl.h.
const atRemoveFolder = 0x200

func openGroup(path string) (group, error) {
	folder, err := os.Open(path)
	return group{folder}, err
}

// child opens a group inside this one.
func (g group) child(name string) (group, error) {
	fd, err := g.openAt(name, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW)
	if err != nil {
		return group{}, err
	}
	return group{os.NewFile(uintptr(fd), name)}, nil
}

// makeChild makes a group, or takes one of that name.
func (g group) makeChild(name string) (group, error) {
	if err := syscall.Mkdirat(g.fd(), name, 0o755); err != nil && err != syscall.EEXIST {
		return group{}, err
	}
	return g.child(name)
}

func (g group) removeChild(name string) error {
	text, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall(syscall.SYS_UNLINKAT, uintptr(g.fd()), uintptr(unsafe.Pointer(text)), atRemoveFolder)
	if errno != 0 {
		return errno
	}
	return nil
}

// children gives the names of the groups inside, at most so many.
func (g group) children(most int) ([]string, error) {
	fd, err := g.openAt(".", syscall.O_RDONLY|syscall.O_DIRECTORY) // its own place in the listing
	if err != nil {
		return nil, err
	}
	listing := os.NewFile(uintptr(fd), "control group")
	defer listing.Close() // read only: its error has nothing to tell
	entries, err := listing.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	if len(names) > most {
		return nil, fmt.Errorf("%d control groups side by side, more than %d", len(names), most)
	}
	return names, nil
}

func (g group) read(file string) (string, error) {
	fd, err := g.openAt(file, syscall.O_RDONLY)
	if err != nil {
		return "", err
	}
	opened := os.NewFile(uintptr(fd), file)
	defer opened.Close() // read only: its error has nothing to tell
	text, err := io.ReadAll(io.LimitReader(opened, maxFileBytes))
	return string(text), err
}

func (g group) write(file, text string) error {
	fd, err := g.openAt(file, syscall.O_WRONLY)
	if err != nil {
		return err
	}
	defer syscall.Close(fd) // the write has told all that there is
	for {
		_, err = syscall.Write(fd, []byte(text))
		if err != syscall.EINTR {
			return err
		}
	}
}

// processes gives the numbers of the processes in this group, not of those in groups inside.
func (g group) processes() ([]int, error) {
	text, err := g.read("cgroup.procs")
	if errors.Is(err, syscall.EOPNOTSUPP) { // a threaded one: its processes are told by the group above
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, line := range strings.Fields(text) {
		pid, err := strconv.Atoi(line)
		if err == nil && pid > 0 { // 0 is one of another namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// isFrozen says whether everybody in the group stands still.
func (g group) isFrozen() (bool, error) {
	text, err := g.read("cgroup.events")
	if err != nil {
		return false, err
	}
	for _, line := range strings.Split(text, "\n") {
		if line == "frozen 1" {
			return true, nil
		}
	}
	return false, nil
}

func (g group) fd() int { return int(g.folder.Fd()) }

func (g group) openAt(name string, flags int) (int, error) {
	for {
		fd, err := syscall.Openat(g.fd(), name, flags|syscall.O_CLOEXEC, 0)
		if err != syscall.EINTR {
			return fd, err
		}
	}
}

func (g group) close() {
	_ = g.folder.Close() // a folder: its error has nothing to tell
}
