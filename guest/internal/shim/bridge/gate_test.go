package bridge

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// heldDaemon is a daemon with one connection through its handshake, and the gate before it.
func heldDaemon(t *testing.T) (daemon *vsockDaemon, gate *Gate, ours Conn, theirs net.Conn) {
	t.Helper()
	daemon, gate = newDaemon(t), &Gate{}
	daemon.dial = DialDaemon(daemon.listener.Addr().String(), gate)
	result := daemon.dialling(9000)
	theirs, _ = daemon.asked()
	fmt.Fprint(theirs, "OK 9000\n")
	got := <-result
	if got.err != nil {
		t.Fatal(got.err)
	}
	return daemon, gate, got.conn, theirs
}

// quiet is long enough for what happens at once to have happened.
const quiet = 50 * time.Millisecond

func wantNothing(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(quiet)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 10)); n > 0 || err == nil || !err.(net.Error).Timeout() {
		t.Fatalf("%d bytes, %v: something happened", n, err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
}

func TestClosedGateKeepsBytesAndEndsFromTheDaemon(t *testing.T) {
	_, gate, ours, theirs := heldDaemon(t)
	gate.Hold()
	go func() {
		if _, err := ours.Write([]byte("late")); err != nil {
			t.Error(err)
		}
		if err := ours.Close(); err != nil {
			t.Error(err)
		}
	}()
	wantNothing(t, theirs)
	gate.Release()
	text := make([]byte, 10)
	if n, err := theirs.Read(text); err != nil || string(text[:n]) != "late" {
		t.Errorf("got %q, %v", text[:n], err)
	}
	if _, err := theirs.Read(text); err == nil {
		t.Error("the end does not come")
	}
}

func TestClosedGateKeepsConnectionsFromTheDaemon(t *testing.T) {
	daemon, gate, _, _ := heldDaemon(t)
	gate.Hold()
	if got := <-daemon.dialling(9000); got.err == nil {
		t.Error("a machine that stands still answers")
	}
	if err := daemon.listener.SetDeadline(time.Now().Add(quiet)); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.listener.Accept(); err == nil {
		t.Error("the daemon saw it")
	}
}

func TestHoldForATimeEndsByItselfUnlessItBecomesAHold(t *testing.T) {
	var gate Gate
	gate.HoldFor(time.Millisecond)
	gate.pass()
	gate.HoldFor(time.Hour)
	gate.HoldFor(time.Millisecond)
	gate.pass()
	gate.HoldFor(time.Millisecond)
	gate.Hold()
	gate.HoldFor(time.Millisecond)
	if gate.passWithin(quiet) {
		t.Error("the hold ended with the time")
	}
	gate.Release()
	gate.Release()
	if !gate.passWithin(0) {
		t.Error("it is still closed")
	}
}

func TestBridgeEndsWithHostsThatWaitAtTheGateOnceThatIsOpen(t *testing.T) {
	daemon, gate, _, _ := heldDaemon(t)
	path := filepath.Join(t.TempDir(), "vsock.sock")
	bridge, err := Listen(path, daemon.dial, func(err error) { t.Errorf("reported: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	host, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(host, "CONNECT 9000\n")
	theirs, _ := daemon.asked()
	fmt.Fprint(theirs, "OK 9000\n")
	if _, err := host.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	gate.Hold()
	host.Close()
	wantNothing(t, theirs)
	gate.Release()
	if err := bridge.Close(); err != nil {
		t.Error(err)
	}
}
