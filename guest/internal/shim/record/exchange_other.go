//go:build !amd64

package record

import "syscall"

// exchange is written for the architecture that BandSox runs on.
func exchange(_, _ string) error { return syscall.ENOSYS }
