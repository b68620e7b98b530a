package shim

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// settle makes this process one that outlives its starter, with nothing of it: its own session, no inherited descriptors, no
// signal that ends a session or a service.
func settle() error {
	syscall.Umask(0o077)
	// Notify and not Ignore: an ignored signal would stay ignored in the VMM. SIGPIPE is here because Go ends a program that writes
	// to a stdout whose reader has gone, and the starter may go at any time.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	// EPERM: this process leads a process group of another session already (started by hand, from a shell). It stays there: the
	// signals that the session may send are the ones above.
	if _, err := syscall.Setsid(); err != nil && err != syscall.EPERM {
		return fmt.Errorf("setsid: %w", err)
	}
	return closeInherited()
}

// closeInherited closes what the starter left open in this process beyond stdio: held for a VM's whole life, a lock or a pipe of the
// starter would never be released. What the Go runtime has opened by now closes on exec, what was inherited does not.
func closeInherited() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			return fmt.Errorf("/proc/self/fd: %w", err)
		}
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		// EBADF: the descriptor that read the directory.
		if errno == syscall.EBADF || fd <= 2 || flags&syscall.FD_CLOEXEC != 0 {
			continue
		}
		if err := syscall.Close(fd); err != nil {
			return fmt.Errorf("inherited descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// directoryLock keeps a second shim out of the VM's directory.
type directoryLock int

const (
	// lockPatience is for the shim of the VM's previous run, which may have written exit.json a moment ago.
	lockPatience     = 500 * time.Millisecond
	lockPollInterval = 5 * time.Millisecond
)

// lockDirectory locks until release, or the end of this process. The file stays for ever: removing a lock file lets two processes
// lock two files of one name.
func lockDirectory() (directoryLock, error) {
	fd, err := syscall.Open(lockFile, syscall.O_RDWR|syscall.O_CREAT|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", lockFile, err)
	}
	deadline := time.Now().Add(lockPatience)
	for {
		err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return directoryLock(fd), nil
		}
		if err != syscall.EWOULDBLOCK {
			return -1, fmt.Errorf("%s: %w", lockFile, err)
		}
		if time.Now().After(deadline) {
			return -1, fail(codeAlreadyRunning, "another shim holds %s", lockFile)
		}
		time.Sleep(lockPollInterval)
	}
}

func (l directoryLock) release() error { return syscall.Close(int(l)) }
