// Package cgroup puts the programs of a VM into a control group (v2) of their own, with limits. Nothing here makes a folder usable:
// that its controllers are enabled, and that this user may write there, is the manager's to see to.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"syscall"
	"time"
)

// Files that every group has; Documentation/admin-guide/cgroup-v2.rst, "Core Interface Files".
const (
	procsFile = "cgroup.procs"
	// killFile is there from Linux 5.14 on.
	killFile = "cgroup.kill"
)

const (
	// removeLimit is for what was killed to go.
	removeLimit        = 2 * time.Second
	removePollInterval = 5 * time.Millisecond
)

// Make makes the group and sets its limits. On failure nothing is left.
func Make(folder string, settings map[string]string) error {
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	names := make([]string, 0, len(settings))
	for name := range settings {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := set(filepath.Join(folder, name), settings[name]); err != nil {
			// The first failure is the news; whoever starts again in this place removes what is in the way first.
			_ = Remove(folder)
			return fmt.Errorf("limit %s: %w", settings[name], err)
		}
	}
	return nil
}

// Enter moves this process into the group, and with it all that it becomes or starts.
func Enter(folder string) error {
	return set(filepath.Join(folder, procsFile), "0")
}

// Remove kills what is still in the group and removes it; one that is not there is fine.
func Remove(folder string) error {
	for deadline := time.Now().Add(removeLimit); ; time.Sleep(removePollInterval) {
		err := syscall.Rmdir(folder)
		if err == nil || err == syscall.ENOENT {
			return nil
		}
		if err != syscall.EBUSY || time.Now().After(deadline) {
			return &os.PathError{Op: "rmdir", Path: folder, Err: err}
		}
		if err := killAll(folder); err != nil {
			return err
		}
	}
}

func killAll(folder string) error {
	err := set(filepath.Join(folder, killFile), "1")
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	pids, err := os.ReadFile(filepath.Join(folder, procsFile))
	if err != nil {
		return err
	}
	for _, text := range bytes.Fields(pids) {
		pid, err := strconv.Atoi(string(text))
		if err != nil || pid <= 0 {
			return fmt.Errorf("%s names no process: %q", procsFile, text)
		}
		// ESRCH: it has ended since.
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			return fmt.Errorf("kill of %d: %w", pid, err)
		}
	}
	return nil
}

// set writes to a file that the kernel made: one write(2), and no file of ours where the kernel has none.
func set(path, value string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(value)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}
