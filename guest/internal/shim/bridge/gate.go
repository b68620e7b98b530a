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
// Zero is an open gate. It is safe for use by many goroutines.
type Gate struct {
	mu sync.Mutex
	// opened is closed when the gate opens; nil while it is open.
	opened chan struct{}
	// lease ends a hold that was made for a time only.
	lease *time.Timer
}

// Hold closes the gate until Release. What is under way is not waited for.
func (g *Gate) Hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hold()
}

// HoldFor closes the gate for a machine that is about to be stopped: without a Hold in that time it opens again.
func (g *Gate) HoldFor(limit time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil && g.lease == nil {
		return
	}
	g.hold()
	var lease *time.Timer
	lease = time.AfterFunc(limit, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.lease == lease {
			g.release()
		}
	})
	g.lease = lease
}

// Release opens the gate.
func (g *Gate) Release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.release()
}

func (g *Gate) hold() {
	g.endLease()
	if g.opened == nil {
		g.opened = make(chan struct{})
	}
}

func (g *Gate) release() {
	g.endLease()
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

func (c gated) Close() error {
	c.gate.pass()
	return c.UnixConn.Close()
}
