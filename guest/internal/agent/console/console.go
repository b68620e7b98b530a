// Package console writes the agent's own lines to the machine's console, whole and one at a time.
package console

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync"
)

var mutex sync.Mutex

// Printf writes one line. Its own failure is ignored: there is no other place to tell of it.
func Printf(format string, args ...interface{}) {
	line := "bandsox-agent: " + fmt.Sprintf(format, args...) + "\n"
	mutex.Lock()
	defer mutex.Unlock()
	_, _ = os.Stderr.WriteString(line)
}

// Contain is deferred at the top of every goroutine: the end of process 1 is a kernel panic, so one connection's bug must
// not be the machine's. whileDoing completes the line "panic while …"; release runs only after a panic.
func Contain(whileDoing string, release ...func()) {
	if reason := recover(); reason != nil {
		Printf("panic while %s: %v\n%s", whileDoing, reason, debug.Stack())
		for _, r := range release {
			r()
		}
	}
}
