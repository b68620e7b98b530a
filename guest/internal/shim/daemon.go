package shim

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/shim/launch"
	"bandsox.dev/guest/internal/shim/procid"
)

const (
	daemonStartLimit = 5 * time.Second
	daemonStopLimit  = time.Second
	// A daemon takes a ms to start, which the VMM waits for; if it takes much longer, the machine has better things to do than look.
	socketFirstPoll = 200 * time.Microsecond
	socketLastPoll  = 5 * time.Millisecond
)

// daemon is the vsock daemon beside the VMM, started by this shim or by one before it.
type daemon struct {
	process *procid.Handle
	// ended is closed when it has ended and all that follows from it is done, the reaping too where that is this shim's to do.
	ended    chan struct{}
	stopping atomic.Bool
}

// watchDaemon calls died if the daemon ends by itself. wait returns at its end.
func watchDaemon(process *procid.Handle, wait func() error, died func(), report func(error)) *daemon {
	watched := &daemon{process: process, ended: make(chan struct{})}
	go func() {
		report(wait())
		if !watched.stopping.Load() {
			died()
		}
		close(watched.ended)
	}()
	return watched
}

// reap is the wait of a daemon that is this shim's own child.
func reap(program *launch.Program) func() error {
	return func() error {
		_, err := program.End()
		return err
	}
}

// awaitSocket returns when the daemon has made its socket. (It is bound a moment before it is listened on. The VMM, which is yet to
// be started, is never that quick.)
func (d *daemon) awaitSocket(path string) error {
	deadline := time.Now().Add(daemonStartLimit)
	poll := socketFirstPoll
	for {
		_, err := os.Lstat(path)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return err
		}
		select {
		case <-d.ended:
			return fmt.Errorf("it ended before %s was there", path)
		case <-time.After(poll):
		}
		if poll += poll / 4; poll > socketLastPoll {
			poll = socketLastPoll
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no %s within %v", path, daemonStartLimit)
		}
	}
}

// stop ends the daemon, by force when asking does not help, and returns when it has ended.
func (d *daemon) stop() error {
	d.stopping.Store(true)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := d.process.Signal(signal); err != nil && !errors.Is(err, procid.ErrGone) {
			return err
		}
		select {
		case <-d.ended:
			return nil
		case <-time.After(daemonStopLimit):
		}
	}
	return fmt.Errorf("vsock daemon %d does not end", d.process.ID.Pid)
}

// endLeftover ends the daemon of a shim and a VMM that are both gone.
func endLeftover(id procid.ID, report func(error)) error {
	process, err := procid.Open(id)
	if errors.Is(err, procid.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	return watchDaemon(process, process.Wait, func() {}, report).stop()
}
