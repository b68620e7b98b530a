// Package power ends the machine in good order, and hears those who ask for it: the host, the power button, signals.
package power

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/processes"
)

// The modes of PROTOCOL.md's `shutdown`.
const (
	PowerOff = "poweroff"
	Reboot   = "reboot"
)

// DefaultGrace is what processes are given between SIGTERM and SIGKILL when nobody says otherwise.
const DefaultGrace = 2 * time.Second

const (
	killGrace    = time.Second // until what was killed is gone; a process in the kernel may take longer and is left
	pollInterval = 10 * time.Millisecond
)

// Stopper ends the machine once.
type Stopper struct {
	// Refuse stops new connections and operations.
	Refuse func()
	// StopSignals gives the leaders of sessions that want another signal than SIGTERM.
	StopSignals func() map[int]syscall.Signal
	// PowerOff is the mode that a power-off is done by; "": its own.
	PowerOff string
	// Unmount brings the writable file systems into a clean state.
	Unmount func()

	once sync.Once
}

// Stop ends the machine; the first caller's mode counts. It returns at once.
func (s *Stopper) Stop(mode string, grace time.Duration) {
	if mode == PowerOff && s.PowerOff != "" {
		mode = s.PowerOff
	}
	s.once.Do(func() {
		go func() {
			defer console.Contain("stopping the machine", func() { restart(mode) })
			s.stop(mode, grace)
		}()
	})
}

func (s *Stopper) stop(mode string, grace time.Duration) {
	console.Printf("stopping (%s), %v of grace", mode, grace)
	s.Refuse()
	s.endProcesses(grace)
	syscall.Sync()
	s.Unmount()
	restart(mode)
}

// endProcesses asks every process to end, and after the grace makes it.
func (s *Stopper) endProcesses(grace time.Duration) {
	deadline := time.Now().Add(grace)
	if own := s.StopSignals(); len(own) > 0 {
		signalEach(own)
		signalAll(syscall.SIGCONT) // a stopped process hears a signal only then
		waitUntil(deadline, func() bool { return len(s.StopSignals()) == 0 })
	}
	signalAll(syscall.SIGTERM) // also what those leaders have left behind
	signalAll(syscall.SIGCONT)
	if waitUntil(deadline, isAlone) {
		return
	}
	signalAll(syscall.SIGKILL)
	if !waitUntil(time.Now().Add(killGrace), isAlone) {
		console.Printf("some processes did not end")
	}
}

// signalAll reaches every process but this one and the kernel's own (kill(2), pid -1).
func signalAll(sig syscall.Signal) {
	if err := syscall.Kill(-1, sig); err != nil && err != syscall.ESRCH {
		console.Printf("cannot signal all processes: %v", err)
	}
}

// signalEach asks leaders by their own signals and leaves their sessions to them, as a container's stop does: a server that
// ends in good order tells its children itself. Everybody else gets SIGTERM.
func signalEach(own map[int]syscall.Signal) {
	pids, err := processes.List()
	if err != nil {
		signalAll(syscall.SIGTERM) // without /proc nobody can be told apart
		return
	}
	for _, pid := range pids {
		session := processes.SessionOf(pid)
		if session == 0 {
			continue
		}
		sig, isOwn := own[session]
		if isOwn && pid != session {
			continue
		}
		if !isOwn {
			sig = syscall.SIGTERM
		}
		if err := syscall.Kill(pid, sig); err != nil && err != syscall.ESRCH {
			console.Printf("cannot signal process %d: %v", pid, err)
		}
	}
}

func waitUntil(deadline time.Time, isTrue func() bool) bool {
	for {
		if isTrue() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pollInterval)
	}
}

// isAlone says whether every other process is a kernel thread or a zombie: only living user processes have a command line.
func isAlone() bool {
	pids, err := processes.List()
	if err != nil {
		return true // without /proc nobody can tell: the signals were sent
	}
	for _, pid := range pids {
		commandLine, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && len(commandLine) > 0 {
			return false
		}
	}
	return true
}

// Restart ends the machine at once: for a boot that failed. A VMM told not to reboot ends with it.
func Restart() { restart(Reboot) }

// restart asks the kernel for the end. What a reboot means (a new start, or the machine's end) is the VMM's matter.
func restart(mode string) {
	command := syscall.LINUX_REBOOT_CMD_POWER_OFF
	if mode == Reboot {
		command = syscall.LINUX_REBOOT_CMD_RESTART
	}
	if err := syscall.Reboot(command); err != nil {
		console.Printf("cannot end the machine (%s): %v", mode, err)
	}
}
