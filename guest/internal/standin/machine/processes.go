package machine

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/processes"
)

const (
	setChildSubreaper = 36 // PR_SET_CHILD_SUBREAPER of prctl(2)
	pollInterval      = 5 * time.Millisecond
)

// adoptOrphans makes this process what process 1 is in a machine: it inherits the orphans of its commands, and so can find them.
func adoptOrphans() {
	_, _, _ = syscall.RawSyscall6(syscall.SYS_PRCTL, setChildSubreaper, 1, 0, 0, 0, 0) // it cannot fail since Linux 3.4
}

// endDescendants asks the machine's processes to end, and after the grace makes them. own are those that want another signal.
func endDescendants(own map[int]syscall.Signal, grace time.Duration) {
	deadline := time.Now().Add(grace)
	for _, pid := range descendants() {
		sig, isOwn := own[pid]
		if !isOwn {
			sig = syscall.SIGTERM
		}
		signalProcess(pid, sig)
		signalProcess(pid, syscall.SIGCONT) // a stopped process hears a signal only then
	}
	for len(descendants()) > 0 && time.Now().Before(deadline) {
		time.Sleep(pollInterval)
	}
	killDescendants()
}

// freeze stops all processes of the machine, as a pause does, and gives those that it has stopped.
func freeze() []int {
	var stopped []int
	if !hasChildren() {
		return stopped
	}
	for _, pid := range descendants() {
		if state, _ := stateOf(pid); state == 'T' {
			continue // the guest's own doing
		}
		signalProcess(pid, syscall.SIGSTOP)
		stopped = append(stopped, pid)
	}
	return stopped
}

func thaw(stopped []int) {
	for _, pid := range stopped {
		signalProcess(pid, syscall.SIGCONT)
	}
}

// hasChildren is quick, where looking through /proc is not.
func hasChildren() bool {
	const allChildren, options = 0, syscall.WNOHANG | syscall.WNOWAIT | syscall.WEXITED // P_ALL of waitid(2)
	_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, allChildren, 0, 0, options, 0, 0)
	return errno != syscall.ECHILD
}

func killDescendants() {
	for _, pid := range descendants() {
		signalProcess(pid, syscall.SIGKILL)
	}
}

func signalProcess(pid int, sig syscall.Signal) {
	if err := syscall.Kill(pid, sig); err != nil && err != syscall.ESRCH {
		console.Printf("cannot signal process %d: %v", pid, err)
	}
}

// descendants are the living ones of this process. Without /proc, as in a jail, there are none to be found.
func descendants() []int {
	pids, err := processes.List()
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, pid := range pids {
		if parent, isAlive := parentOf(pid); isAlive {
			children[parent] = append(children[parent], pid)
		}
	}
	var found []int
	for next := []int{os.Getpid()}; len(next) > 0; next = next[1:] {
		found = append(found, children[next[0]]...)
		next = append(next, children[next[0]]...)
	}
	return found
}

// parentOf is not asked of those that have ended and were not collected.
func parentOf(pid int) (parent int, isAlive bool) {
	state, parent := stateOf(pid)
	return parent, state != 0 && state != 'Z'
}

// stateOf reads fields 3 and 4 of /proc/PID/stat, which come behind a name that may hold anything. State 0: it is gone.
func stateOf(pid int) (state byte, parent int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 {
		return 0, 0
	}
	if parent, err = strconv.Atoi(string(fields[1])); err != nil {
		return 0, 0
	}
	return fields[0][0], parent
}
