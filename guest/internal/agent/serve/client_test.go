package serve

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/wire"
)

// answerTimeout ends a test that would wait for ever.
const answerTimeout = 10 * time.Second

// object is a message as the host writes it.
type object map[string]interface{}

var commands = reaper.New()

func TestMain(m *testing.M) {
	if os.Getenv("BANDSOX_TEST_SHOW_WORDS") != "" { // run as a tool by one of the tests
		fmt.Println(strings.Join(os.Args, " "))
		os.Exit(0)
	}
	go commands.Run()
	os.Exit(m.Run())
}

// newServer serves on a Unix socket, as on any other stream, and gives its path.
func newServer(t *testing.T) (*Server, string) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &Server{
		Version: "test", BootID: "boot", Reaper: commands,
		UptimeMs: func() int64 { return 7 }, Stages: func() map[string]int64 { return map[string]int64{"ready": 5} },
		Shutdown: func(string, time.Duration) {},
	}
	go server.Accept(listener)
	t.Cleanup(server.Stop)
	return server, path
}

// host is the other side: a small client that knows the protocol.
type host struct {
	t       testing.TB
	conn    net.Conn
	decoder *wire.Decoder
}

func dial(t testing.TB, path string) *host {
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() }) // closed by some tests already
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		t.Fatal(err)
	}
	return &host{t, conn, wire.NewDecoder(conn, wire.ToHost)}
}

// connect starts a server and says hello.
func connect(t *testing.T) *host {
	_, path := newServer(t)
	return greet(t, path)
}

func greet(t testing.TB, path string) *host {
	h := dial(t, path)
	h.send(object{"type": "hello", "protocol": 1, "minProtocol": 1})
	h.expect("hello")
	return h
}

func (h *host) send(message object) {
	h.t.Helper()
	frame, err := wire.AppendMessage(nil, message)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(frame)
}

func (h *host) sendData(data []byte) {
	h.t.Helper()
	frame := append(make([]byte, wire.HeaderBytes), data...)
	wire.PutHeader(frame, wire.KindData, len(data))
	h.write(frame)
}

func (h *host) write(bytes []byte) {
	h.t.Helper()
	if _, err := h.conn.Write(bytes); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) next() wire.Frame {
	h.t.Helper()
	frame, err := h.decoder.Next()
	if err != nil {
		h.t.Fatal(err)
	}
	return frame
}

// expect reads a message of a type.
func (h *host) expect(kind string) wire.Message {
	h.t.Helper()
	frame := h.next()
	if frame.Kind != wire.KindMessage || frame.Message.Type != kind {
		h.t.Fatalf("got kind %d, message %s, %s was meant", frame.Kind, show(frame.Message), kind)
	}
	return frame.Message
}

func (h *host) expectError(code string) {
	h.t.Helper()
	if message := h.expect("error"); message.Text("code") != code {
		h.t.Fatalf("error %s, %s was meant", show(message), code)
	}
}

// expectEnd reads until the guest has closed the connection.
func (h *host) expectEnd() {
	h.t.Helper()
	for {
		if _, err := h.decoder.Next(); err != nil {
			if err, timeout := err.(net.Error); timeout && err.Timeout() {
				h.t.Fatal("the connection did not end")
			}
			return
		}
	}
}

// expectUsable asks for a pong.
func (h *host) expectUsable() {
	h.t.Helper()
	h.send(object{"type": "ping"})
	h.expect("pong")
}

// result is what a command gave.
type result struct {
	stdout, stderr bytes.Buffer
	last           wire.Message
}

// exec runs a command; the message's type is filled in.
func (h *host) exec(message object) result {
	h.t.Helper()
	message["type"] = "exec"
	if _, given := message["user"]; !given && os.Geteuid() != 0 {
		message["user"] = fmt.Sprint(os.Geteuid())
	}
	h.send(message)
	return h.collect()
}

// collect reads a command's answer to its end.
func (h *host) collect() result {
	h.t.Helper()
	var r result
	for {
		switch frame := h.next(); frame.Kind {
		case wire.KindStdout:
			r.stdout.Write(frame.Payload)
		case wire.KindStderr:
			r.stderr.Write(frame.Payload)
		default:
			if frame.Message.Type == "exit" || frame.Message.Type == "error" {
				r.last = frame.Message
				return r
			}
		}
	}
}

func (r result) expectCode(t testing.TB, code int64) {
	t.Helper()
	if r.last.Integer("code", -1) != code {
		t.Fatalf("ended with %s, code %d was meant; stderr %q", show(r.last), code, r.stderr.String())
	}
}

func (r result) expectError(t testing.TB, code string) {
	t.Helper()
	if r.last.Type != "error" || r.last.Text("code") != code {
		t.Fatalf("ended with %s, error %s was meant", show(r.last), code)
	}
}

func show(message wire.Message) string {
	text, err := json.Marshal(message.Fields)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// connections says how many a server has: a connection is counted until its operation has heard of its end.
func connections(server *Server) int32 { return atomic.LoadInt32(&server.connections) }

func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(answerTimeout); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
