package bridge

import (
	"net"
	"sync"
	"time"
)

// Gate keeps everything away from a vsock daemon while its machine stands still. A stopped machine takes its queues back, and
// vhost-device-vsock 0.3.0 ends its only worker when anything happens at a host's connection without them (process_tx in
// vhu_vsock_thread.rs): bytes, an end, a new connection. The VM's vsock is dead from then on, also when the machine goes on.
//
// A manager that stops the machine says so before: then the link is quiet first, without connections, and stays so until the
// machine runs again.
//
// Zero is an open gate. It is safe for use by many goroutines.
type Gate struct {
	// Settle is how much later than the machine the gate opens: QEMU says that it goes on before the daemon has its queues again.
	// To be set before the first Release.
	Settle time.Duration

	mu sync.Mutex
	// machine is what is known of it: it decides together with closed, which is a manager's word.
	machine machineState
	changes int // tells what was heard of it last from what was heard before
	// lease ends the quiet for a machine that was not stopped after all; nil when it was, or was never to be.
	lease *time.Timer
	// quiet is set from Quiesce to the opening: new connections are refused.
	quiet bool
	// closed is set when the quiet has come, or its time is up: what is still open then waits here.
	closed bool
	// opened is closed when the gate opens; nil while it is open.
	opened chan struct{}
}

type machineState int

const (
	runs machineState = iota
	standsStill
	// unknown holds the gate as well, until it is known that the machine runs.
	unknown
	// settling is runs, but for what may reach the daemon.
	settling
)

// Hold closes the gate until Release: the machine stands still, or is about to. What is under way is not waited for.
func (g *Gate) Hold() { g.set(standsStill) }

// HoldUnknown closes the gate until Release, for who has yet to find out what the machine does.
func (g *Gate) HoldUnknown() { g.set(unknown) }

// Release opens the gate, since the machine runs: but not before it was stopped, if a manager has just said that it will be.
func (g *Gate) Release() { g.set(runs) }

// Quiesce prepares for the machine's being stopped: from now on Quiet says that nothing new may come, end is called to end what is
// open, and when that returns the gate is closed. All this ends with the Release after a Hold, or after limit without a Hold. On a
// machine that stands still already nothing can be ended, and nothing is.
func (g *Gate) Quiesce(limit time.Duration, end func()) {
	lease := g.lend(limit)
	if lease == nil {
		return
	}
	end()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.lease == lease {
		g.closed = true
		g.settle()
	}
}

// Reprieve ends a Quiesce at once: the machine was not stopped after all, and will not be.
func (g *Gate) Reprieve() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.endLease()
	g.settle()
}

// Open opens the gate for good: there is no machine any more.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.endLease()
	g.machine = runs
	g.settle()
}

// Quiet says whether new connections are to be refused.
func (g *Gate) Quiet() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.quiet
}

// lend begins the time that a manager has to stop the machine; nil where it stands still.
func (g *Gate) lend(limit time.Duration) *time.Timer {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == standsStill {
		return nil
	}
	g.endLease()
	g.quiet = true
	var lease *time.Timer
	lease = time.AfterFunc(limit, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.lease == lease {
			g.endLease()
			g.settle()
		}
	})
	g.lease = lease
	return lease
}

func (g *Gate) set(machine machineState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if machine == runs && (g.machine == runs || g.machine == settling) {
		return
	}
	g.changes++
	if machine == runs && g.Settle > 0 {
		machine = settling
		change := g.changes
		time.AfterFunc(g.Settle, func() { g.settled(change) })
	}
	g.machine = machine
	if machine == standsStill {
		g.endLease() // as was said; what it has kept away is now the machine's to keep away
	}
	g.settle()
}

// settled is called when the machine has run for a while, if nothing was heard of it since.
func (g *Gate) settled(change int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changes == change && g.machine == settling {
		g.machine = runs
		g.settle()
	}
}

// settle opens or closes the gate as all that is known demands.
func (g *Gate) settle() {
	if (g.machine == runs || g.machine == settling) && g.lease == nil {
		g.quiet, g.closed = false, false
	}
	if g.machine != runs || g.closed {
		if g.opened == nil {
			g.opened = make(chan struct{})
		}
		return
	}
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

func (g *Gate) endLease() {
	if g.lease != nil {
		g.lease.Stop()
		g.lease = nil
	}
}

// wait returns nil when the gate is open, else what is closed when it opens.
func (g *Gate) wait() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

// pass returns when the gate is open.
func (g *Gate) pass() {
	for opened := g.wait(); opened != nil; opened = g.wait() {
		<-opened
	}
}

// passWithin is pass with a limit; false when the gate is still closed after it.
func (g *Gate) passWithin(limit time.Duration) bool {
	opened := g.wait()
	if opened == nil {
		return true
	}
	select {
	case <-opened:
		return true
	case <-time.After(limit):
		return false
	}
}

// gated is a connection to the daemon. It waits at the gate for as long as that is closed, whatever its deadlines are: a host that has
// gone leaves its place only when the machine goes on.
type gated struct {
	*net.UnixConn
	gate *Gate
}

func (c gated) Read(data []byte) (int, error) {
	c.gate.pass()
	return c.UnixConn.Read(data)
}

func (c gated) Write(data []byte) (int, error) {
	c.gate.pass()
	return c.UnixConn.Write(data)
}

func (c gated) CloseWrite() error {
	c.gate.pass()
	return c.UnixConn.CloseWrite()
}

func (c gated) Close() error {
	c.gate.pass()
	return c.UnixConn.Close()
}
