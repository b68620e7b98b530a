// Package gate stops all that moves in a machine while it is paused.
package gate

import "sync"

// Gate is open at first.
type Gate struct {
	mutex  sync.Mutex
	closed chan struct{} // nil while the gate is open; closed when it opens
}

// Pass waits while the gate is closed.
func (g *Gate) Pass() {
	for {
		g.mutex.Lock()
		closed := g.closed
		g.mutex.Unlock()
		if closed == nil {
			return
		}
		<-closed
	}
}

// Close may be called again.
func (g *Gate) Close() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.closed == nil {
		g.closed = make(chan struct{})
	}
}

// Open may be called again.
func (g *Gate) Open() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
	}
}
