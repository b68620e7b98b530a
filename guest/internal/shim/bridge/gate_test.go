package bridge

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// heldDaemon is a daemon with one connection through its handshake, and the gate before it.
func heldDaemon(t *testing.T) (daemon *vsockDaemon, gate *Gate, ours Conn, theirs net.Conn) {
	t.Helper()
	daemon, gate = newDaemon(t), &Gate{}
	daemon.dial = DialSocket(daemon.listener.Addr().String(), gate)
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

func TestGateIsQuietUntilTheMachineRunsAgain(t *testing.T) {
	var gate Gate
	ended := 0
	end := func() {
		ended++
		if !gate.Quiet() || !gate.passWithin(0) {
			t.Errorf("while connections end: quiet %v, and the gate must be open for them", gate.Quiet())
		}
	}
	gate.Quiesce(time.Hour, end)
	if ended != 1 || gate.passWithin(0) {
		t.Errorf("ended %d times, and the gate must be closed", ended)
	}
	gate.Release() // a late answer of before the stop
	if !gate.Quiet() || gate.passWithin(0) {
		t.Error("it opened before the stop")
	}
	gate.Hold()
	gate.Quiesce(time.Millisecond, end) // to a machine that stands still nothing is done
	if gate.passWithin(quiet) || ended != 1 {
		t.Errorf("ended %d times, and the gate must be closed", ended)
	}
	gate.Release()
	gate.Release()
	if gate.Quiet() || !gate.passWithin(0) {
		t.Error("it is still closed")
	}
}

func TestQuietEndsByItselfWhenTheMachineIsNotStopped(t *testing.T) {
	var gate Gate
	gate.HoldUnknown()
	gate.Quiesce(quiet, func() {}) // by a manager that knows more than a new shim
	gate.Release()
	if gate.passWithin(0) {
		t.Error("it opened before the stop")
	}
	gate.pass()
	if gate.Quiet() {
		t.Error("new connections are refused at an open gate")
	}
	gate.Quiesce(time.Hour, func() {})
	gate.Open()
	if gate.Quiet() || !gate.passWithin(0) {
		t.Error("it is closed for good")
	}
}

func TestBridgeEndsWithHostsThatWaitAtTheGateOnceThatIsOpen(t *testing.T) {
	daemon, gate, _, _ := heldDaemon(t)
	path := filepath.Join(t.TempDir(), "vsock.sock")
	bridge, err := Listen(path, Settings{Dial: daemon.dial, Gate: gate, Report: func(err error) { t.Errorf("reported: %v", err) }})
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

func TestQuietEndsConnectionsOnBothSidesAndRefusesNewOnes(t *testing.T) {
	daemon, gate, _, _ := heldDaemon(t)
	path := filepath.Join(t.TempDir(), "vsock.sock")
	bridge, err := Listen(path, Settings{Dial: daemon.dial, Gate: gate, Report: func(err error) { t.Errorf("reported: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer bridge.Close()
	connect := func() net.Conn {
		host, err := net.Dial("unix", path)
		if err == nil {
			err = host.SetDeadline(time.Now().Add(patience))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { host.Close() })
		fmt.Fprint(host, "CONNECT 9000\n")
		return host
	}
	wantEnd := func(conn net.Conn) {
		t.Helper()
		if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil && err.(net.Error).Timeout() {
			t.Errorf("%q, %v, want the end", rest, err)
		}
	}
	host := connect()
	theirs, _ := daemon.asked()
	fmt.Fprint(theirs, "OK 9000\n")
	if _, err := host.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Dial("unix", path) // has not said a word yet
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	fmt.Fprint(host, "last words")
	unsure := connect() // its answer comes when the connection is not wanted any more
	late, _ := daemon.asked()
	held := make(chan struct{})
	go func() {
		gate.Quiesce(time.Hour, func() { bridge.End(patience) })
		close(held)
	}()
	text := make([]byte, 10)
	if _, err := io.ReadFull(theirs, text); err != nil || string(text) != "last words" {
		t.Errorf("the guest has %q, %v", text, err)
	}
	wantEnd(theirs)
	wantEnd(host)
	wantEnd(connect())
	select {
	case <-held:
		t.Error("held while the guest still has the connection")
	default:
	}
	theirs.Close()
	fmt.Fprint(late, "OK 9000\n")
	wantEnd(late)
	late.Close()
	wantEnd(unsure)
	<-held
	if now := bridge.Statistics(); now != (Statistics{Opened: 1, ToGuest: 10}) {
		t.Errorf("the bridge counts %+v", now)
	}
	gate.Hold()
	wantEnd(connect())
	gate.Release()
	back := connect()
	again, _ := daemon.asked()
	fmt.Fprint(again, "OK 9000\nhello")
	if _, err := io.ReadFull(back, make([]byte, len("OK 1073741825\nhello"))); err != nil {
		t.Fatal(err)
	}
	if now := bridge.Statistics(); now != (Statistics{Open: 1, Opened: 2, ToGuest: 10, FromGuest: 5}) {
		t.Errorf("the bridge counts %+v", now)
	}
}

func TestEndDoesNotWaitForAGuestThatKeepsItsEnd(t *testing.T) {
	daemon, gate, _, _ := heldDaemon(t)
	path := filepath.Join(t.TempDir(), "vsock.sock")
	bridge, err := Listen(path, Settings{Dial: daemon.dial, Gate: gate, Report: func(err error) { t.Errorf("reported: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	host, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	fmt.Fprint(host, "CONNECT 9000\n")
	theirs, _ := daemon.asked()
	fmt.Fprint(theirs, "OK 9000\n")
	if _, err := host.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	gate.Quiesce(time.Hour, func() { bridge.End(quiet) })
	if gate.passWithin(0) {
		t.Error("the gate is open")
	}
	gate.Open()
	if err := bridge.Close(); err != nil {
		t.Error(err)
	}
}

func TestAGateOpensAMomentAfterTheMachineGoesOn(t *testing.T) {
	gate := &Gate{Settle: 2 * quiet}
	gate.Release() // it has never stood still
	if gate.wait() != nil {
		t.Fatal("an open gate was closed")
	}
	gate.Quiesce(patience, func() {})
	gate.Hold()
	gate.Release()
	gate.Release() // as who comes next finds out
	if gate.Quiet() {
		t.Fatal("connections are refused that could wait")
	}
	if gate.passWithin(quiet) {
		t.Fatal("it is open at once")
	}
	if !gate.passWithin(patience) {
		t.Fatal("it stays closed")
	}

	gate.Hold()
	gate.Release()
	gate.Hold()
	if gate.passWithin(4 * quiet) {
		t.Fatal("it opens for a machine that stands still again")
	}
	gate.Open()
	if gate.wait() != nil {
		t.Fatal("it is closed without a machine")
	}
}
