package shim

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"bandsox.dev/guest/internal/shim/record"
)

// maxReportBytes bounds shim.log: trouble worth reading is at its beginning, and repeats must not fill the disk.
const maxReportBytes = 64 << 10

// reporter writes the shim's own log, for trouble that nobody waits to hear of.
type reporter struct {
	mu   sync.Mutex
	file *os.File
	left int
}

// openReporter begins the log anew for a new VM (os.O_TRUNC), or goes on with it (0).
func openReporter(truncate int) (*reporter, error) {
	file, err := os.OpenFile(ownLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW|truncate, 0o600)
	if err != nil {
		return nil, err
	}
	return &reporter{file: file, left: maxReportBytes}, nil
}

// report writes one line; nil is no trouble.
func (r *reporter) report(err error) {
	if err == nil {
		return
	}
	line := fmt.Sprintf("%s %v\n", record.Now(), err)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(line) > r.left {
		r.left = 0
		return
	}
	r.left -= len(line)
	// There is nowhere left to say that this failed.
	_, _ = r.file.WriteString(line)
}
