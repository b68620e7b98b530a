// Package reaper collects the statuses of all children of process 1: it hands a command's status to whoever started it, and
// forgets the orphans'.
//
// Process 1 inherits every orphan, so somebody must wait for any child, and whoever does also gets the statuses of commands.
// os/exec waits for its own child and would race with that, hence syscall.ForkExec and one place that waits.
package reaper

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/processes"
)

const sysPidfdOpen = 434 // the same on every architecture; since Linux 5.3

// Program is what a child runs.
type Program struct {
	Path string
	Argv []string
	// StopSignal is what it wants when the machine stops; 0: SIGTERM, like everybody.
	StopSignal syscall.Signal
	// EvenHeld says that it may be started while the others are held back.
	EvenHeld bool
}

// ErrHeld says that no program may be started for a while.
var ErrHeld = errors.New("no program may be started while processes are frozen")

// Child is a command that was started here.
type Child struct {
	Pid int
	// PidFD becomes readable when the process ends (pidfd_open(2)); the owner closes it. Polling it costs no signal handler
	// and no goroutine between the end of a command and its answer.
	PidFD  int
	reaper *Reaper
	stop   syscall.Signal
	ended  chan struct{} // closed when status is there
	status syscall.WaitStatus
}

// Reaper waits for all children of this process.
type Reaper struct {
	mutex    sync.Mutex
	children map[int]*Child
	held     bool
}

// New makes a reaper, which must be the only one who waits for children in this process.
func New() *Reaper { return &Reaper{children: map[int]*Child{}} }

// Run collects whenever the kernel says that a child ended. It does not return.
func (r *Reaper) Run() {
	ended := make(chan os.Signal, 1) // SIGCHLDs merge anyway: one that waits is enough
	signal.Notify(ended, syscall.SIGCHLD)
	for range ended {
		r.Collect()
	}
}

// Start forks and runs a program. The lock keeps the status of a child that ends at once until the child is known.
func (r *Reaper) Start(program Program, attr *syscall.ProcAttr) (*Child, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.held && !program.EvenHeld {
		return nil, ErrHeld
	}
	pid, err := syscall.ForkExec(program.Path, program.Argv, attr)
	if err != nil {
		return nil, err
	}
	child := &Child{Pid: pid, PidFD: -1, reaper: r, stop: program.StopSignal, ended: make(chan struct{})}
	r.children[pid] = child
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno != 0 {
		// Too many open files, for one. Nobody could tell when it ends: do not let it run.
		_ = syscall.Kill(-pid, syscall.SIGKILL) // it cannot fail: our own child, not yet waited for
		return nil, fmt.Errorf("cannot watch process %d: %w", pid, errno)
	}
	child.PidFD = int(fd)
	return child, nil
}

// Hold lets no program start, or lets them start again. When it returns no start is under way, and so none between fork and exec,
// where the kernel would keep this process waiting for a child that stands still.
func (r *Reaper) Hold(held bool) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.held = held
}

// Collect takes the statuses of all children that have ended. Whoever learns of an end in another way (a pidfd) calls it
// too, and so does not wait for the signal to come through.
func (r *Reaper) Collect() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil && err != syscall.ECHILD {
			console.Printf("cannot wait for children: %v", err)
		}
		if err != nil || pid <= 0 {
			return
		}
		if child, known := r.children[pid]; known {
			delete(r.children, pid)
			child.status = status
			close(child.ended)
		}
	}
}

// Ended is closed when the child's status has been collected.
func (c *Child) Ended() <-chan struct{} { return c.ended }

// Status gives the status. It may be asked once Ended is closed.
func (c *Child) Status() syscall.WaitStatus { return c.status }

// SignalGroup sends a signal to the child's process group, if the child has not been collected: until then its number cannot
// belong to anybody else. It says whether it sent it.
func (c *Child) SignalGroup(sig syscall.Signal) (bool, error) {
	c.reaper.mutex.Lock()
	defer c.reaper.mutex.Unlock()
	if _, alive := c.reaper.children[c.Pid]; !alive {
		return false, nil
	}
	if err := syscall.Kill(-c.Pid, sig); err != nil && err != syscall.ESRCH {
		return false, err
	}
	return true, nil
}

// killPasses bounds KillSession against processes that fork as fast as they are killed.
const killPasses = 20

// KillSession kills every process of the session that the child leads, if the child has not been collected. The group is not
// enough for a shell at a terminal: each of its jobs has a group of its own.
func (c *Child) KillSession() error {
	c.reaper.mutex.Lock()
	defer c.reaper.mutex.Unlock()
	if _, alive := c.reaper.children[c.Pid]; !alive {
		return nil
	}
	killed := map[int]bool{}
	for pass := 0; pass < killPasses; pass++ {
		pids, err := processes.List()
		if err != nil {
			// Without /proc only the group can be found.
			if killErr := syscall.Kill(-c.Pid, syscall.SIGKILL); killErr != nil && killErr != syscall.ESRCH {
				return killErr
			}
			return err
		}
		found := false
		for _, pid := range pids {
			if killed[pid] || processes.SessionOf(pid) != c.Pid {
				continue
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				return err
			}
			killed[pid], found = true, true
		}
		if !found {
			return nil // nobody was forked since the last look
		}
	}
	return fmt.Errorf("new processes appear as fast as they are killed")
}

// StopSignals gives the children that want another signal than SIGTERM when the machine stops, by pid.
func (r *Reaper) StopSignals() map[int]syscall.Signal {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	found := map[int]syscall.Signal{}
	for pid, child := range r.children {
		if child.stop != 0 {
			found[pid] = child.stop
		}
	}
	return found
}
