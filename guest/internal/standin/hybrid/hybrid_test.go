package hybrid

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/standin/gate"
)

// patience is how long a test waits for what must come; moment for what must not.
const (
	patience = 10 * time.Second
	moment   = 50 * time.Millisecond
)

// fixture is a device whose guest echoes on port 9000.
type fixture struct {
	t      *testing.T
	path   string
	gate   *gate.Gate
	device *Device
}

func newFixture(t *testing.T) *fixture {
	f := newSilent(t)
	f.device.Activate()
	f.echo()
	return f
}

// newSilent has neither a driver nor a listener in the guest.
func newSilent(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, path: filepath.Join(t.TempDir(), "v.sock"), gate: &gate.Gate{}}
	var err error
	if f.device, err = New(f.path, 0, f.gate); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.device.Die)
	return f
}

func (f *fixture) echo() {
	port := f.device.Listen(9000)
	go func() {
		for {
			conn, err := port.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
}

func (f *fixture) dial(pieces ...string) *net.UnixConn {
	f.t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: f.path, Net: "unix"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	for i, piece := range pieces {
		if i > 0 {
			time.Sleep(moment)
		}
		if _, err := io.WriteString(conn, piece); err != nil && !errors.Is(err, syscall.EPIPE) {
			f.t.Fatal(err)
		}
	}
	return conn
}

func (f *fixture) wantRead(conn net.Conn, want string) {
	f.t.Helper()
	must(f.t, conn.SetReadDeadline(time.Now().Add(patience)))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); string(got[:n]) != want {
		f.t.Fatalf("read %q (%v), want %q", got[:n], err, want)
	}
}

func (f *fixture) wantEnd(conn net.Conn) {
	f.t.Helper()
	must(f.t, conn.SetReadDeadline(time.Now().Add(patience)))
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		f.t.Fatalf("%d bytes, %v, want the end", n, err)
	}
}

func (f *fixture) wantSilence(conn net.Conn) {
	f.t.Helper()
	must(f.t, conn.SetReadDeadline(time.Now().Add(moment)))
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		f.t.Fatalf("%d bytes, %v, want silence", n, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConnectIsAnsweredWithPortsThatCountUp(t *testing.T) {
	f := newFixture(t)
	for _, want := range []string{"OK 1073741824\n", "OK 1073741825\n"} {
		f.wantRead(f.dial("CONNECT 9000\n"), want)
	}
	if f.device.LastPort() != 1073741825 {
		t.Errorf("the last port is %d", f.device.LastPort())
	}
}

func TestWhatFirecrackerTakesForAConnectLine(t *testing.T) {
	f := newFixture(t)
	for _, line := range []string{"CONNECT 9000\r\n", "connect 9000\n", "CONNECT   9000\n", "CONNECT 9000 and more\n", "CONNECT +9000\n"} {
		f.wantRead(f.dial(line), "OK ")
	}
	for _, line := range []string{"CONNECT abc\n", "HELLO 9000\n", "CONNECT 4294967296\n", "CONNECT 9001\n", "CONNECT -1\n", "x\n", "CONNECT \n\n\n"} {
		f.wantEnd(f.dial(line))
	}
	for _, pieces := range [][]string{{"CONN", "ECT 9000\n"}, {"CONNECT 9000", "\n"}} {
		f.wantEnd(f.dial(pieces...))
	}
}

func TestDataBehindTheLineReachesTheGuest(t *testing.T) {
	f := newFixture(t)
	conn := f.dial("CONNECT 9000\nright behind")
	f.wantRead(conn, "OK 1073741824\n")
	f.wantRead(conn, "right behind")
}

func TestBeforeTheDriverIsThereNobodyIsAnsweredAndThenRefused(t *testing.T) {
	f := newSilent(t)
	early := f.dial("CONNECT 9000\n")
	f.wantSilence(early)
	f.device.Activate()
	f.wantEnd(early)
	f.wantEnd(f.dial("CONNECT 9000\n"))
	f.echo()
	f.wantRead(f.dial("CONNECT 9000\n"), "OK ")
}

func TestAHostsHalfCloseEndsTheConnection(t *testing.T) {
	f := newSilent(t)
	f.device.Activate()
	port := f.device.Listen(9000)
	host := f.dial("CONNECT 9000\n")
	f.wantRead(host, "OK 1073741824\n")
	guest, err := port.Accept()
	must(t, err)
	_, err = io.WriteString(host, "last words")
	must(t, err)
	must(t, host.CloseWrite())
	f.wantRead(guest, "last words")
	f.wantEnd(guest)
	f.wantEnd(host) // and nothing that the guest may still have said
}

func TestAGuestHasNoHalfClose(t *testing.T) {
	f := newSilent(t)
	f.device.Activate()
	port := f.device.Listen(9000)
	f.wantRead(f.dial("CONNECT 9000\n"), "OK ")
	guest, err := port.Accept()
	must(t, err)
	if _, can := guest.(interface{ CloseWrite() error }); can {
		t.Error("the guest's end can be closed by half")
	}
}

func TestAllThatAGuestSentBeforeItClosedArrives(t *testing.T) {
	f := newSilent(t)
	f.device.Activate()
	port := f.device.Listen(9000)
	host := f.dial("CONNECT 9000\n")
	f.wantRead(host, "OK 1073741824\n")
	guest, err := port.Accept()
	must(t, err)
	go func() {
		_, _ = io.WriteString(guest, strings.Repeat("x", 1_000_000)) // the host counts
		_ = guest.Close()
	}()
	must(t, host.SetReadDeadline(time.Now().Add(patience)))
	if n, err := io.Copy(io.Discard, host); n != 1_000_000 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestNothingMovesWhileTheMachineIsPaused(t *testing.T) {
	f := newFixture(t)
	open := f.dial("CONNECT 9000\n")
	f.wantRead(open, "OK 1073741824\n")
	f.gate.Close()
	_, err := io.WriteString(open, "while paused")
	must(t, err)
	late := f.dial("CONNECT 9000\n")
	f.wantSilence(open)
	f.wantSilence(late)
	f.gate.Open()
	f.wantRead(open, "while paused")
	f.wantRead(late, "OK 1073741825\n")
}

func TestASnapshotKillsConnectionsWithoutTellingTheHost(t *testing.T) {
	f := newSilent(t)
	f.device.Activate()
	port := f.device.Listen(9000)
	host := f.dial("CONNECT 9000\n")
	f.wantRead(host, "OK 1073741824\n")
	guest, err := port.Accept()
	must(t, err)
	f.gate.Close()
	f.device.Sever()
	f.device.Reset()
	f.gate.Open()
	f.wantEnd(guest)
	f.wantSilence(host)
	_, err = io.WriteString(host, "are you there?")
	must(t, err)
	f.wantEnd(host)
	f.wantRead(f.dial("CONNECT 9000\n"), "OK ") // a new one works at once
}

func TestALoadedDeviceGoesOnCounting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.sock")
	device, err := New(path, FirstPort+41, &gate.Gate{})
	must(t, err)
	t.Cleanup(device.Die)
	f := &fixture{t: t, path: path, device: device}
	device.Activate()
	f.echo()
	f.wantRead(f.dial("CONNECT 9000\n"), "OK 1073741866\n")
}

func TestFaultsOfTheDevice(t *testing.T) {
	f := newFixture(t)
	open := f.dial("CONNECT 9000\n")
	f.wantRead(open, "OK 1073741824\n")
	f.device.Hang()
	f.wantSilence(f.dial("CONNECT 9000\n"))
	f.device.Die()
	f.wantEnd(open)
	if conn, err := net.Dial("unix", f.path); err == nil {
		conn.Close()
		t.Error("a dead socket takes connections")
	}
	if _, err := os.Stat(f.path); err != nil {
		t.Errorf("its file is gone: %v", err)
	}
	refusing := newFixture(t)
	refusing.device.Refuse()
	refusing.wantEnd(refusing.dial("CONNECT 9000\n"))
}

func TestAFullBacklogRefuses(t *testing.T) {
	f := newSilent(t)
	f.device.Activate()
	f.device.Listen(9000) // and accepts nobody
	for i := 0; i < backlog; i++ {
		f.wantRead(f.dial("CONNECT 9000\n"), "OK ")
	}
	f.wantEnd(f.dial("CONNECT 9000\n"))
}
