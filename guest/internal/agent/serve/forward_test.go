package serve

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"net"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/wire"
)

// listen gives a TCP service of this machine: serve gets each connection.
func listen(t *testing.T, serve func(*net.TCPConn)) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn.(*net.TCPConn))
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port
}

// forwardTo begins a `connect` operation.
func forwardTo(t *testing.T, port int) *host {
	t.Helper()
	h := connect(t)
	h.send(object{"type": "connect", "port": port})
	h.expect("connected")
	return h
}

// tunnel is what the host knows of a forwarded connection.
type tunnel struct {
	got   bytes.Buffer
	acked int64
	ended bool
}

// until reads, and acknowledges, until is holds.
func (h *host) until(state *tunnel, is func() bool) {
	h.t.Helper()
	for !is() {
		frame := h.next()
		switch {
		case frame.Kind == wire.KindData:
			state.got.Write(frame.Payload)
			h.send(object{"type": "ack", "offset": state.got.Len()})
		case frame.Message.Type == "ack":
			state.acked = frame.Message.Integer("offset", 0)
		case frame.Message.Type == "eof":
			state.ended = true
		default:
			h.t.Fatalf("got %s", show(frame.Message))
		}
	}
}

func TestAForwardedConnectionKeepsBothHalfCloses(t *testing.T) {
	port := listen(t, func(conn *net.TCPConn) {
		defer conn.Close()
		request, _ := io.ReadAll(conn) // it ends with the host's eof only
		conn.Write(append([]byte("got "), request...))
	})
	h := forwardTo(t, port)
	h.sendData([]byte("hello"))
	h.send(object{"type": "eof"})
	var state tunnel
	h.until(&state, func() bool { return state.ended && state.acked == 5 })
	if state.got.String() != "got hello" {
		t.Fatalf("got %q", state.got.String())
	}
	h.expectUsable()
}

func TestAForwardedConnectionThatTheGuestEndsFirstStillTakesBytes(t *testing.T) {
	rest := make(chan []byte, 1)
	port := listen(t, func(conn *net.TCPConn) {
		defer conn.Close()
		conn.Write([]byte("banner"))
		conn.CloseWrite()
		all, _ := io.ReadAll(conn)
		rest <- all
	})
	h := forwardTo(t, port)
	var state tunnel
	h.until(&state, func() bool { return state.ended })
	h.sendData([]byte("late"))
	h.send(object{"type": "eof"})
	h.until(&state, func() bool { return state.acked == 4 })
	if got := string(<-rest); got != "late" || state.got.String() != "banner" {
		t.Fatalf("the guest got %q, the host %q", got, state.got.String())
	}
	h.expectUsable()
}

func TestForwardedBytesFlowBothWaysAtOnceAndNeitherDirectionWaitsForTheOther(t *testing.T) {
	content := make([]byte, 5<<20)
	rand.New(rand.NewSource(1)).Read(content)
	uploaded := make(chan []byte, 1)
	port := listen(t, func(conn *net.TCPConn) {
		go func() {
			conn.Write(content)
			conn.CloseWrite()
		}()
		all, _ := io.ReadAll(conn)
		uploaded <- all
	})
	h := forwardTo(t, port)
	var state tunnel
	// The host takes nothing of the guest's bytes while it sends all of its own.
	sent := 0
	for sent < len(content) {
		for int64(sent)-state.acked <= 131072-32768 && sent < len(content) {
			end := sent + 32768
			if end > len(content) {
				end = len(content)
			}
			h.sendData(content[sent:end])
			sent = end
		}
		frame := h.next()
		if frame.Kind == wire.KindData {
			state.got.Write(frame.Payload)
		} else {
			state.acked = frame.Message.Integer("offset", 0)
		}
		if state.got.Len() > 131072 {
			t.Fatalf("%d bytes came without an ack", state.got.Len())
		}
	}
	h.send(object{"type": "eof"})
	h.send(object{"type": "ack", "offset": state.got.Len()})
	h.until(&state, func() bool { return state.ended && state.acked == int64(len(content)) })
	if !bytes.Equal(<-uploaded, content) || !bytes.Equal(state.got.Bytes(), content) {
		t.Fatal("the bytes are not the same")
	}
	h.expectUsable()
}

func TestAResetOfTheGuestsSideIsTold(t *testing.T) {
	port := listen(t, func(conn *net.TCPConn) {
		conn.Read(make([]byte, 1))
		conn.SetLinger(0)
		conn.Close()
	})
	h := forwardTo(t, port)
	h.sendData([]byte("x"))
	h.expectError("connection-failed")
	h.sendData([]byte("crossed"))
	h.send(object{"type": "eof"})
	h.expectUsable()
}

func TestNobodyListening(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	h := connect(t)
	h.send(object{"type": "connect", "port": port})
	h.expectError("connection-refused")
	h.send(object{"type": "connect", "port": port, "host": "no such name"})
	h.expectError("connection-failed")
	h.expectUsable()
}

// endOf gives a service, and how its connection ends.
func endOf(t *testing.T) (int, chan error) {
	ended := make(chan error, 1)
	port := listen(t, func(conn *net.TCPConn) {
		defer conn.Close()
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	})
	return port, ended
}

func expectReset(t *testing.T, ended chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the guest's side saw %v, a reset was meant", err)
		}
	case <-time.After(answerTimeout):
		t.Fatal("the guest's side saw no end")
	}
}

func TestAbortResetsAForwardedConnection(t *testing.T) {
	port, ended := endOf(t)
	h := forwardTo(t, port)
	h.send(object{"type": "abort"})
	h.expectError("aborted")
	expectReset(t, ended)
	h.expectUsable()
}

func TestTheEndOfTheLinkResetsAForwardedConnectionThoughItsServiceReadsNothing(t *testing.T) {
	ended := make(chan error, 1)
	goOn := make(chan struct{})
	port := listen(t, func(conn *net.TCPConn) {
		defer conn.Close()
		<-goOn
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	})
	h := forwardTo(t, port)
	h.sendData(make([]byte, 131072))
	h.conn.Close()
	close(goOn)
	expectReset(t, ended)
}

func TestAHostThatBreaksTheRulesOfAForwardedConnectionLosesIt(t *testing.T) {
	for name, breakIt := range map[string]func(*host){
		"an ack of what was not sent": func(h *host) { h.send(object{"type": "ack", "offset": 1}) },
		"a second eof": func(h *host) {
			h.send(object{"type": "eof"})
			h.send(object{"type": "eof"})
		},
		"data after eof": func(h *host) {
			h.send(object{"type": "eof"})
			h.sendData([]byte("x"))
		},
		"another operation": func(h *host) { h.send(object{"type": "ping"}) },
	} {
		t.Run(name, func(t *testing.T) {
			stay := make(chan struct{})
			defer close(stay)
			port := listen(t, func(conn *net.TCPConn) { <-stay; conn.Close() })
			h := forwardTo(t, port)
			breakIt(h)
			message := h.next().Message
			if message.Type == "ack" {
				message = h.next().Message
			}
			if message.Text("code") != "bad-request" {
				t.Fatalf("got %s", show(message))
			}
			h.expectEnd()
		})
	}
}

func TestMoreThanTheWindowIsAViolation(t *testing.T) {
	stay := make(chan struct{})
	defer close(stay)
	port := listen(t, func(conn *net.TCPConn) {
		conn.SetReadBuffer(4096)
		<-stay
		conn.Close()
	})
	h := forwardTo(t, port)
	go func() { // until the guest closes
		frame := append(make([]byte, wire.HeaderBytes), make([]byte, 65536)...)
		wire.PutHeader(frame, wire.KindData, 65536)
		for i := 0; i < 1000; i++ {
			if _, err := h.conn.Write(frame); err != nil {
				return
			}
		}
	}()
	for {
		frame := h.next()
		if frame.Message.Type == "ack" {
			continue
		}
		if frame.Message.Text("code") != "bad-request" {
			t.Fatalf("got %s", show(frame.Message))
		}
		break
	}
}
