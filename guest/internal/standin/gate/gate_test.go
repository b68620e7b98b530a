package gate

import (
	"testing"
	"time"
)

func TestNobodyPassesAClosedGate(t *testing.T) {
	g := &Gate{}
	g.Pass() // it is open at first
	g.Close()
	g.Close()
	passed := make(chan struct{})
	go func() {
		g.Pass()
		close(passed)
	}()
	select {
	case <-passed:
		t.Fatal("somebody passed")
	case <-time.After(20 * time.Millisecond):
	}
	g.Open()
	g.Open()
	select {
	case <-passed:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody passes the open gate")
	}
}
