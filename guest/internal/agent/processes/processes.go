// Package processes tells who runs on this machine.
package processes

import (
	"os"
	"strconv"
	"syscall"
)

// List gives the numbers of all processes but this one, kernel threads among them.
func List() ([]int, error) {
	folder, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer folder.Close() // read only: its error has nothing to tell
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// SessionOf gives the session that a process belongs to, 0 for one that has ended and for the kernel's own.
func SessionOf(pid int) int {
	session, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(session)
}
