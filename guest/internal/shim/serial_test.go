package shim_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/serial"
	"bandsox.dev/guest/internal/wire"
)

// buildAgent gives the path of the real agent, made from the sources of this test.
func buildAgent(t *testing.T) string {
	t.Helper()
	agent := filepath.Join(t.TempDir(), "bandsox-agent")
	build := exec.Command("go", "build", "-o", agent, "bandsox.dev/guest/cmd/bandsox-agent")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return agent
}

// newMachineWithPort has the real agent behind a serial port, in the VMM's place: a line like QEMU's, which takes one client at a time.
func newMachineWithPort(t *testing.T) *machine {
	t.Helper()
	return newMachine(t, "", settings{
		"vmm":    settings{"argv": []string{buildAgent(t), "serve-serial", "fd=3"}, "maxFiles": 256},
		"files":  []settings{{"listen": "agent.sock"}},
		"serial": settings{"kind": "port", "socket": "serial.sock", "line": "agent.sock"},
	})
}

// agentClient is a host's connection to the agent.
type agentClient struct {
	net.Conn
	m       *machine
	decoder *wire.Decoder
}

// dialSerial asks for a port on serial.sock; nil when it is closed without a word.
func (m *machine) dialSerial() net.Conn {
	m.t.Helper()
	conn, err := net.Dial("unix", m.path("serial.sock"))
	m.must(err)
	m.t.Cleanup(func() { _ = conn.Close() })
	m.must(conn.SetDeadline(time.Now().Add(2 * patience)))
	if _, err = io.WriteString(conn, "CONNECT 9000\n"); errors.Is(err, syscall.EPIPE) {
		return nil // a held link is closed without being read
	}
	m.must(err)
	for line := ""; ; {
		next := make([]byte, 1)
		if _, err := conn.Read(next); err != nil {
			if line != "" {
				m.t.Fatalf("the bridge said %q, then %v", line, err)
			}
			return nil
		}
		if line += string(next); strings.HasSuffix(line, "\n") {
			if !strings.HasPrefix(line, "OK ") {
				m.t.Fatalf("the bridge said %q", line)
			}
			return conn
		}
	}
}

// greetAgent connects to the agent and has its hello.
func (m *machine) greetAgent() *agentClient {
	m.t.Helper()
	conn := m.dialSerial()
	if conn == nil {
		m.t.Fatal("refused")
	}
	client := &agentClient{conn, m, wire.NewDecoder(conn, wire.ToHost)}
	client.send(settings{"type": "hello", "protocol": 1, "minProtocol": 1})
	client.expect("hello")
	return client
}

func (c *agentClient) send(message any) {
	c.m.t.Helper()
	frame, err := wire.AppendMessage(nil, message)
	c.m.must(err)
	_, err = c.Write(frame)
	c.m.must(err)
}

func (c *agentClient) expect(kind string) {
	c.m.t.Helper()
	frame, err := c.decoder.Next()
	c.m.must(err)
	if frame.Message.Type != kind {
		c.m.t.Fatalf("got %+v, want %s", frame, kind)
	}
}

func (c *agentClient) ping() {
	c.m.t.Helper()
	c.send(settings{"type": "ping"})
	c.expect("pong")
}

func (c *agentClient) wantEnd() {
	c.m.t.Helper()
	if _, err := c.decoder.Next(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		c.m.t.Errorf("%v, want the end", err)
	}
}

func (m *machine) links() (links struct{ Vsock, Serial map[string]any }) {
	m.t.Helper()
	client := m.connect()
	defer client.Close()
	client.wantEvent("status")
	client.say(`{"op":"links"}` + "\n")
	text, err := json.Marshal(client.wantEvent("links"))
	m.must(err)
	m.must(json.Unmarshal(text, &links))
	return links
}

func (m *machine) endBySignal(started *shimProcess) {
	m.t.Helper()
	client := m.connect()
	client.wantEvent("status")
	client.say(`{"op":"signal","signal":"SIGTERM"}` + "\n")
	client.wantEvent("signalled")
	client.wantEvent("exited")
	m.wantStatus(started, 0)
}

func TestAgentIsReachedOverAPort(t *testing.T) {
	m := newMachineWithPort(t)
	started := m.mustStart("run")
	first, second := m.greetAgent(), m.greetAgent()
	first.ping()
	second.ping()
	links := m.links()
	if links.Vsock != nil {
		t.Errorf("there is no vsock, but %v", links.Vsock)
	}
	for name, want := range map[string]any{"kind": "port", "state": "up", "open": 2., "opened": 2.} {
		if links.Serial[name] != want {
			t.Errorf("%s is %v, want %v", name, links.Serial[name], want)
		}
	}
	for _, name := range []string{"toGuestBytes", "fromGuestBytes", "rttMs", "windowBytes", "payloadBytes", "framesSent"} {
		if figure, isNumber := links.Serial[name].(float64); !isNumber || figure <= 0 {
			t.Errorf("%s is %v", name, links.Serial[name])
		}
	}
	m.must(second.Close())
	m.await("the end of one", func() bool { return m.links().Serial["open"] == 1. })
	first.ping()
	m.endBySignal(started)
	first.wantEnd()
	m.wantFiles(leftAfterEnd...)
}

func TestAnotherShimReachesTheAgentOverThePort(t *testing.T) {
	m := newMachineWithPort(t)
	started := m.mustStart("run")
	m.greetAgent().ping()
	m.kill(started)
	started = m.mustStart("adopt")
	m.greetAgent().ping()
	if links := m.links(); links.Serial["opened"] != 1. {
		t.Errorf("the new shim has seen %v", links.Serial)
	}
	m.endBySignal(started)
	m.wantFiles(leftAfterEnd...)
}

func TestLineThatDropsIsConnectedAnew(t *testing.T) {
	m := newMachine(t, "", settings{
		"vmm":    settings{"argv": []string{testProgram(t), "vmm-that-drops"}, "maxFiles": 256},
		"files":  []settings{{"listen": "agent.sock"}},
		"serial": settings{"kind": "port", "socket": "serial.sock", "line": "agent.sock"},
	})
	started := m.mustStart("run")
	for i := 0; i < 3; i++ {
		conn := m.dialSerial()
		if conn == nil {
			t.Fatal("refused")
		}
		_, err := conn.Write([]byte("drop"))
		m.must(err)
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes, %v, want the end of the stream", n, err)
		}
	}
	m.endBySignal(started)
}

// vmmThatDrops is a VMM whose serial line ends as soon as something is said over it.
func vmmThatDrops() int {
	listener, err := net.FileListener(os.NewFile(3, "line"))
	for err == nil {
		var line net.Conn
		if line, err = listener.Accept(); err == nil {
			guest := serial.NewGuest(line, serial.Settings{})
			if stream, acceptErr := guest.Accept(); acceptErr == nil {
				_, _ = stream.Read(make([]byte, 1))
			}
			err = guest.Close()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func TestGuestThatHasNotSpokenIsNotSpokenTo(t *testing.T) {
	m := newMachine(t, "read line; echo got $line", settings{"serial": settings{"kind": "uart", "socket": "serial.sock"}})
	started := m.mustStart("run")
	if links := m.links(); links.Serial["state"] != "connecting" || links.Serial["rttMs"] != nil || links.Serial["kind"] != "uart" {
		t.Errorf("the link is %v", links.Serial)
	}
	conn, err := net.Dial("unix", m.path("serial.sock"))
	m.must(err)
	defer conn.Close()
	_, err = io.WriteString(conn, "CONNECT 9000\n")
	m.must(err)
	time.Sleep(100 * time.Millisecond) // by now a greeting would have been sent, for a kernel to echo
	m.send("go\n")
	m.wantStatus(started, 0)
	if m.read("console.log") != "got go\n" {
		t.Errorf("the console has %q", m.read("console.log"))
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
	m.wantFiles(leftAfterEnd...)
}

func newMachineWithUART(t *testing.T) *machine {
	t.Helper()
	return newMachine(t, "", settings{
		"vmm":    settings{"argv": []string{testProgram(t), "vmm-with-uart"}, "maxFiles": 256},
		"serial": settings{"kind": "uart", "socket": "serial.sock"},
	})
}

func testProgram(t *testing.T) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// echoed sends bytes over a stream that gives them back.
func (m *machine) echoed(size int) {
	m.t.Helper()
	conn := m.dialSerial()
	if conn == nil {
		m.t.Fatal("refused")
	}
	defer conn.Close()
	sent, got := make([]byte, size), make([]byte, size)
	rand.New(rand.NewSource(1)).Read(sent)
	go func() {
		if _, err := conn.Write(sent); err != nil {
			m.t.Error(err)
		}
	}()
	n, err := io.ReadFull(conn, got)
	m.must(err)
	if !bytes.Equal(sent, got) {
		m.t.Errorf("what came back is not what was sent (%d bytes)", n)
	}
}

func TestConsoleStaysWholeWhileTheUARTIsTheLink(t *testing.T) {
	m := newMachineWithUART(t)
	started := m.mustStart("run")
	watcher := m.connect()
	watcher.wantEvent("status")
	watcher.say(`{"op":"console","tail":0}` + "\n")
	watcher.wantEvent("console")
	m.echoed(300_000)
	// What is typed meanwhile goes into the same line.
	typed := make(chan error)
	go func() {
		_, err := watcher.Write(bytes.Repeat([]byte("typed text\n"), 100))
		typed <- err
	}()
	m.echoed(100_000)
	m.must(<-typed)
	m.kill(started)
	started = m.mustStart("adopt")
	m.echoed(100_000)
	m.endBySignal(started)
	text := strings.TrimPrefix(m.read("console.log"), "grüße\n")
	lines := strings.Split(text, "\n")
	if len(lines) < 100 {
		t.Errorf("the console has %d lines", len(lines))
	}
	for i, line := range lines[:len(lines)-1] {
		if line != fmt.Sprint("line ", i) {
			t.Fatalf("the console's line %d is %q", i, line)
		}
	}
	m.wantFiles(leftAfterEnd...)
}

// vmmWithUART is a VMM whose guest echoes what comes over its streams, and prints a line of text in the middle of whatever it sends.
func vmmWithUART() int {
	line := &uartOfGuest{}
	if _, err := os.Stdout.WriteString("grüße\n\x1e"); err != nil {
		return 1
	}
	guest := serial.NewGuest(line, serial.Settings{Coding: serial.Text})
	for {
		stream, err := guest.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go func() {
			_, _ = io.Copy(stream, stream) // its host sees how far that went
			_ = stream.Close()
		}()
	}
}

// uartOfGuest is stdin and stdout.
type uartOfGuest struct {
	mu    sync.Mutex
	lines int
}

func (u *uartOfGuest) Read(data []byte) (int, error) { return os.Stdin.Read(data) }

func (u *uartOfGuest) Write(data []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	cut := len(data) * (u.lines % 11) / 11
	for _, piece := range [][]byte{data[:cut], []byte(fmt.Sprintf("line %d\n", u.lines)), data[cut:]} {
		if _, err := os.Stdout.Write(piece); err != nil {
			return 0, err
		}
	}
	u.lines++
	return len(data), nil
}

func (u *uartOfGuest) Close() error { return os.Stdout.Close() }

func TestHeldLinksAreWithoutConnectionsUntilTheMachineRunsAgain(t *testing.T) {
	m := newMachine(t, "", settings{
		"vmm":     settings{"argv": []string{testProgram(t), "vmm-with-monitor", "port"}, "maxFiles": 256},
		"files":   []settings{{"listen": "events.sock"}, {"listen": "agent.sock"}},
		"monitor": settings{"kind": "qmp", "socket": "events.sock"},
		"serial":  settings{"kind": "port", "socket": "serial.sock", "line": "agent.sock"},
	})
	started := m.mustStart("run")
	m.awaitStatus("running")
	m.echoed(1000)
	stays := m.dialSerial()
	client := m.connect()
	client.wantEvent("status")
	client.say(`{"op":"hold-link"}` + "\n")
	client.wantEvent("link-held")
	if links := m.links(); links.Serial["open"] != 0. || links.Serial["opened"] != 2. {
		t.Errorf("held: %v", links.Serial)
	}
	if n, err := stays.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("the stream goes on: %d bytes, %v", n, err)
	}
	m.send("paused STOP\n")
	client.wantEvent("machine")
	if m.dialSerial() != nil {
		t.Error("a stopped machine takes connections")
	}
	m.send("running RESUME\n")
	client.wantEvent("machine")
	m.echoed(1000)
	m.send("end host-signal\n")
	client.wantEvent("exited")
	m.wantStatus(started, 0)
	m.wantFiles(leftAfterEnd...)
}

func TestMachineThatStopsByItselfKeepsItsStreams(t *testing.T) {
	m := newMachine(t, "", settings{
		"vmm":     settings{"argv": []string{testProgram(t), "vmm-with-monitor", "port"}, "maxFiles": 256},
		"files":   []settings{{"listen": "events.sock"}, {"listen": "agent.sock"}},
		"monitor": settings{"kind": "qmp", "socket": "events.sock"},
		"serial":  settings{"kind": "port", "socket": "serial.sock", "line": "agent.sock"},
	})
	started := m.mustStart("run")
	m.awaitStatus("running")
	conn := m.dialSerial()
	m.send("io-error STOP\n")
	m.awaitStatus("io-error")
	m.send("running RESUME\n")
	m.awaitStatus("running")
	_, err := conn.Write([]byte("x"))
	m.must(err)
	_, err = io.ReadFull(conn, make([]byte, 1))
	m.must(err)
	m.send("end host-signal\n")
	m.wantStatus(started, 0)
}

// echoOverPort serves the serial port of a VMM that the tests play.
func echoOverPort(fd uintptr) error {
	listener, err := net.FileListener(os.NewFile(fd, "line"))
	if err != nil {
		return err
	}
	line, err := listener.Accept()
	if err != nil {
		return err
	}
	guest := serial.NewGuest(line, serial.Settings{})
	for {
		stream, err := guest.Accept()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(stream, stream) // its host sees how far that went
			_ = stream.Close()
		}()
	}
}
