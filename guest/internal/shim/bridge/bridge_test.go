package bridge

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

const patience = 10 * time.Second

// guest stands in for the kernel's vsock: a Unix socket, which is as much of a stream with closing and backpressure.
type guest struct {
	t        *testing.T
	listener *net.UnixListener
	bridge   *Bridge
	path     string
}

// newGuest has a bridge to a guest that listens on port 9000 only.
func newGuest(t *testing.T) *guest {
	t.Helper()
	dir := t.TempDir()
	address := &net.UnixAddr{Name: filepath.Join(dir, "guest"), Net: "unix"}
	listener, err := net.ListenUnix("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(port uint32) (Conn, error) {
		if port != 9000 {
			return nil, errors.New("nobody listens there")
		}
		return net.DialUnix("unix", nil, address)
	}
	g := &guest{t: t, listener: listener, path: filepath.Join(dir, "vsock.sock")}
	g.bridge, err = Listen(g.path, Settings{Dial: dial, Gate: &Gate{}, Report: func(err error) { t.Errorf("reported: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.bridge.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		_ = listener.Close() // a test may have closed it
	})
	return g
}

// host connects to the bridge.
func (g *guest) host() *net.UnixConn {
	g.t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: g.path, Net: "unix"})
	return g.kept(conn, err)
}

// accept is the guest's end of the next connection.
func (g *guest) accept() *net.UnixConn {
	g.t.Helper()
	conn, err := g.listener.AcceptUnix()
	return g.kept(conn, err)
}

func (g *guest) kept(conn *net.UnixConn, err error) *net.UnixConn {
	g.t.Helper()
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
	}
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (g *guest) send(conn net.Conn, text string) {
	g.t.Helper()
	if _, err := conn.Write([]byte(text)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) wantNext(conn net.Conn, want string) {
	g.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		g.t.Fatalf("got %q (%v), want %q", got[:n], err, want)
	}
}

// wantEnd reads to the end and returns what came before it. A reset is an end too: it tells that something was left unread.
func (g *guest) wantEnd(conn net.Conn) []byte {
	g.t.Helper()
	rest, err := io.ReadAll(conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		g.t.Fatal("the connection does not end")
	}
	return rest
}

// connected is a connection that is through its handshake.
func (g *guest) connected() (host, inside *net.UnixConn) {
	g.t.Helper()
	host = g.host()
	g.send(host, "CONNECT 9000\n")
	inside = g.accept()
	g.wantNext(host, "OK 1073741824\n")
	return host, inside
}

func TestLinesThatConnect(t *testing.T) {
	for _, line := range []string{"CONNECT 9000\n", "connect 9000\n", "Connect \t 9000\r\n", " CONNECT 9000\n", "CONNECT 9000 and more\n", "CONNECT 00000000000000000009000\n"} {
		t.Run(line, func(t *testing.T) {
			g := newGuest(t)
			host := g.host()
			g.send(host, line)
			inside := g.accept()
			g.wantNext(host, "OK 1073741824\n")
			g.send(host, "to the guest")
			g.wantNext(inside, "to the guest")
			g.send(inside, "to the host")
			g.wantNext(host, "to the host")
		})
	}
}

func TestLinesThatAreClosedWithoutAWord(t *testing.T) {
	for _, line := range []string{
		"CONNECT abc\n", "HELLO 9000\n", "CONNECT 4294967296\n", "CONNECT -9000\n", "CONNECT\n", "CONNECT      \n", "\n",
		"CONNECT 9000 and far too much more\n", "CONNECT 9000\xff\n", "CONNECT 9001\n",
	} {
		t.Run(line, func(t *testing.T) {
			g := newGuest(t)
			host := g.host()
			g.send(host, line)
			if rest := g.wantEnd(host); len(rest) != 0 {
				t.Errorf("the bridge said %q", rest)
			}
		})
	}
}

func TestLineMayArriveInPieces(t *testing.T) {
	g := newGuest(t)
	host := g.host()
	for _, piece := range []string{"CONN", "ECT 90", "00", "\nright behind it"} {
		g.send(host, piece)
		time.Sleep(20 * time.Millisecond)
	}
	g.wantNext(g.accept(), "right behind it")
	g.wantNext(host, "OK 1073741824\n")
}

func TestLineThatDoesNotComeEndsTheConnection(t *testing.T) {
	g := newGuest(t)
	host := g.host()
	g.send(host, "CONNECT 9000")
	before := time.Now()
	g.wantEnd(host)
	if waited := time.Since(before); waited < time.Second || waited > 4*time.Second {
		t.Errorf("waited %v", waited)
	}
}

func TestHostHasEverythingOfAGuestThatClosesRightBehindIt(t *testing.T) {
	g := newGuest(t)
	host, inside := g.connected()
	sent := bytes.Repeat([]byte("0123456789"), 100000)
	go func() {
		if _, err := inside.Write(sent); err != nil {
			t.Error(err)
		}
		_ = inside.Close() // the reading of all shows whether that went well
	}()
	// Late, so that pipes and buffers are full when the guest wants to close.
	time.Sleep(100 * time.Millisecond)
	if got := g.wantEnd(host); !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes of %d", len(got), len(sent))
	}
}

func TestHostHasTheWholeAnswerThoughTheGuestRefusesItsInput(t *testing.T) {
	g := newGuest(t)
	host, inside := g.connected()
	answer := bytes.Repeat([]byte("0123456789"), 100000)
	go func() {
		if err := inside.CloseRead(); err != nil {
			t.Error(err)
		}
		if _, err := inside.Write(answer); err != nil {
			t.Error(err)
		}
		_ = inside.Close() // the reading of all shows whether that went well
	}()
	time.Sleep(50 * time.Millisecond)
	g.send(host, "more input")
	if got := g.wantEnd(host); !bytes.Equal(got, answer) {
		t.Errorf("got %d bytes of %d", len(got), len(answer))
	}
}

func TestGuestHasEverythingOfAHostThatCloses(t *testing.T) {
	g := newGuest(t)
	host, inside := g.connected()
	sent := bytes.Repeat([]byte("0123456789"), 100000)
	go func() {
		if _, err := host.Write(sent); err != nil {
			t.Error(err)
		}
		_ = host.Close() // the reading of all shows whether that went well
	}()
	if got := g.wantEnd(inside); !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes of %d", len(got), len(sent))
	}
}

func TestThereIsNoHalfClose(t *testing.T) {
	g := newGuest(t)
	host, inside := g.connected()
	if err := host.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	g.wantEnd(inside)
	g.wantEnd(host)
}

func TestReceiverThatDoesNotReadStopsItsSenderOnly(t *testing.T) {
	g := newGuest(t)
	stuckHost, stuckInside := g.connected()
	if err := stuckInside.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := stuckInside.Write(make([]byte, 8<<20)); err == nil {
		t.Errorf("%d bytes were taken for a host that does not read", n)
	}
	host := g.host()
	g.send(host, "CONNECT 9000\n")
	inside := g.accept()
	g.wantNext(host, "OK 1073741825\n")
	g.send(host, "ping")
	g.wantNext(inside, "ping")
	g.send(stuckHost, "still there")
	g.wantNext(stuckInside, "still there")
}

func TestCloseEndsEveryConnection(t *testing.T) {
	g := newGuest(t)
	host, inside := g.connected()
	waiting := g.host()
	g.send(waiting, "CONN")
	if err := g.bridge.Close(); err != nil {
		t.Fatal(err)
	}
	g.wantEnd(host)
	g.wantEnd(inside)
	g.wantEnd(waiting)
}

func TestShutBridgeHasNoConnectionsUntilItIsReopened(t *testing.T) {
	g := newGuest(t)
	host, inside := g.connected()
	silent := g.host() // has not said a word yet
	g.send(host, "last words")
	g.wantNext(inside, "last words")
	shut := make(chan struct{})
	go func() {
		g.bridge.Shut(patience)
		close(shut)
	}()
	if rest := g.wantEnd(inside); len(rest) != 0 {
		t.Errorf("the guest has %q more", rest)
	}
	g.wantEnd(host)
	g.wantEnd(silent)
	_ = inside.Close()
	<-shut
	if now := g.bridge.Statistics().Open; now != 0 {
		t.Errorf("%d connections are open", now)
	}
	refused := g.host()
	// It may be closed already.
	_, _ = refused.Write([]byte("CONNECT 9000\n"))
	if rest := g.wantEnd(refused); len(rest) != 0 {
		t.Errorf("the bridge said %q", rest)
	}
	g.bridge.Reopen()
	back := g.host()
	g.send(back, "CONNECT 9000\n")
	g.send(g.accept(), "hello")
	g.wantNext(back, "OK 1073741825\nhello")
}
