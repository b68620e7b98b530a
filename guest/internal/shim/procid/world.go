package procid

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// World is where this process's pids mean something: the machine's boot, and the PID namespace (its inode).
func World() (bootID string, pidNamespace uint64, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0, err
	}
	var stat syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &stat); err != nil {
		return "", 0, fmt.Errorf("/proc/self/ns/pid: %w", err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""), stat.Ino, nil
}
