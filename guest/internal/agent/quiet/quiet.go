// Package quiet keeps the Go runtime's monitor thread from taking the guest's processor.
//
// While any goroutine runs or is in a system call, the monitor (runtime.sysmon) wakes every 20 µs, and only slows down after
// some 50 idle rounds. Process 1 spends milliseconds inside one vfork per command, and under emulation each of those wakes is
// a timer interrupt and two context switches on the only CPU there is. See docs/performance.md for what it costs.
package quiet

import (
	"fmt"
	"os"
	"strconv"
)

// slack is how late the kernel may wake the monitor. It takes processors away from goroutines in long system calls, which
// the agent has few of, and preempts those that run for 10 ms: both can wait this long.
const slack = 4000000 // ns

// Monitor gives the monitor thread a timer slack. It is the first thread that the runtime starts after the main one (runtime.main),
// hence the lowest thread id but one. Were that wrong one day, some other thread's timers would be late by slack, as those of the
// threads that the monitor itself starts are: they inherit it, and the agent has no timer that minds 4 ms.
func Monitor() error {
	folder, err := os.Open("/proc/self/task")
	if err != nil {
		return fmt.Errorf("cannot look for the runtime's threads: %w", err)
	}
	defer folder.Close() // read only: its error has nothing to tell
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("cannot look for the runtime's threads: %w", err)
	}
	monitor := 0
	for _, name := range names {
		thread, err := strconv.Atoi(name)
		if err == nil && thread != os.Getpid() && (monitor == 0 || thread < monitor) {
			monitor = thread
		}
	}
	path := fmt.Sprintf("/proc/%d/timerslack_ns", monitor)
	if err := os.WriteFile(path, []byte(strconv.Itoa(slack)), 0); err != nil {
		return fmt.Errorf("cannot slow the runtime's monitor down: %w", err)
	}
	return nil
}
