package bridge

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// vsockDaemon stands in for vhost-device-vsock: its end of a connection is handed to the test before it answers.
type vsockDaemon struct {
	t        *testing.T
	listener *net.UnixListener
	dial     Dial
}

func newDaemon(t *testing.T) *vsockDaemon {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() }) // a test may have closed it
	return &vsockDaemon{t: t, listener: listener, dial: DialSocket(path, &Gate{})}
}

// asked is the daemon's end of the next connection, and the line that came over it.
func (d *vsockDaemon) asked() (net.Conn, string) {
	d.t.Helper()
	conn, err := d.listener.Accept()
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		d.t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		d.t.Fatal(err)
	}
	return conn, line
}

type dialled struct {
	conn Conn
	err  error
}

func (d *vsockDaemon) dialling(port uint32) <-chan dialled {
	result := make(chan dialled, 1)
	go func() {
		conn, err := d.dial(port)
		result <- dialled{conn, err}
	}()
	return result
}

func TestDaemonIsAskedAndWhatFollowsItsAnswerIsKept(t *testing.T) {
	daemon := newDaemon(t)
	result := daemon.dialling(9001)
	conn, line := daemon.asked()
	if line != "CONNECT 9001\n" {
		t.Fatalf("asked %q", line)
	}
	fmt.Fprint(conn, "OK 9001\nhello")
	got := <-result
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.conn.Close()
	greeting := make([]byte, 5)
	if n, err := got.conn.Read(greeting); err != nil || string(greeting[:n]) != "hello" {
		t.Fatalf("read %q (%v)", greeting[:n], err)
	}
}

func TestRefusalAndNonsenseOfTheDaemonAreErrors(t *testing.T) {
	daemon := newDaemon(t)
	for _, answer := range []string{"", "NO\n", "OK", strings.Repeat("x", 100)} {
		result := daemon.dialling(9000)
		conn, _ := daemon.asked()
		fmt.Fprint(conn, answer)
		conn.Close()
		if got := <-result; got.err == nil {
			t.Errorf("%q made a connection", answer)
		}
	}
}

func TestDaemonFindsItsConnectionOpenHoweverLateItAnswers(t *testing.T) {
	daemon := newDaemon(t)
	result := daemon.dialling(9000)
	conn, _ := daemon.asked()
	if got := <-result; got.err == nil {
		t.Fatal("a connection without an answer")
	}
	time.Sleep(50 * time.Millisecond) // whoever gave up has done so
	if _, err := fmt.Fprint(conn, "OK 9000\n"); err != nil {
		t.Fatalf("the daemon could not answer: %v", err)
	}
	// Only then is it closed.
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection stays open")
	}
}

func TestHostThatGivesUpInTheMiddleIsNotSeenByTheDaemon(t *testing.T) {
	daemon := newDaemon(t)
	path := filepath.Join(t.TempDir(), "vsock.sock")
	bridge, err := Listen(path, Settings{Dial: daemon.dial, Gate: &Gate{}, Report: func(err error) { t.Errorf("reported: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer bridge.Close()
	host, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(host, "CONNECT 9000\n")
	conn, _ := daemon.asked()
	host.Close()
	time.Sleep(50 * time.Millisecond)
	if _, err := fmt.Fprint(conn, "OK 9000\n"); err != nil {
		t.Fatalf("the daemon could not answer: %v", err)
	}
}
