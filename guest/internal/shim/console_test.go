package shim_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestConsoleGivesTheLogsEndAndThenBothWays(t *testing.T) {
	m := newMachine(t, "echo 0123456789; while read line; do echo got $line; done", nil)
	started := m.mustStart("run")
	m.awaitInFile("console.log", "\n")
	client := m.connect()
	client.wantEvent("status")
	client.say(`{"op":"console","tail":4}` + "\nfirst\n")
	client.wantEvent("console")
	wantBytes(t, client, "789\ngot first\n")
	client.say("second\n")
	wantBytes(t, client, "got second\n")
	// A client that has closed its writing half still reads, to the VM's end.
	m.must(client.CloseWrite())
	m.send("third\n")
	wantBytes(t, client, "got third\n")
	watcher := m.connect()
	watcher.wantEvent("status")
	watcher.say(`{"op":"signal","signal":"SIGTERM"}` + "\n")
	watcher.wantEvent("signalled")
	watcher.wantEvent("exited")
	if rest, err := io.ReadAll(client.reader); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	m.wantStatus(started, 0)
}

func wantBytes(t *testing.T, client *client, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(client.reader, got); err != nil || string(got) != want {
		t.Fatalf("the console says %q (%v), want %q", got[:n], err, want)
	}
}

func TestConsoleClientThatDoesNotReadIsDroppedAndNotTheVM(t *testing.T) {
	const lines = 500000
	m := newMachine(t, fmt.Sprintf("read line; seq 1 %d; echo done >&2; read line", lines), settings{"console": settings{"log": "console.log", "maxBytes": 8 << 20}})
	started := m.mustStart("run")
	stuck := m.connect()
	stuck.wantEvent("status")
	stuck.say(`{"op":"console","tail":0}` + "\n")
	stuck.wantEvent("console")
	m.send("go\n")
	m.awaitInFile("vmm.log", "done")
	m.awaitInFile("console.log", fmt.Sprintf("\n%d\n", lines))
	if size := len(m.read("console.log")); size != 3388895 {
		t.Errorf("the log has %d bytes", size)
	}
	got, err := io.ReadAll(stuck.reader)
	if err != nil && !strings.Contains(err.Error(), "reset") || len(got) > 1<<20 {
		t.Errorf("the stuck client had %d bytes, %v", len(got), err)
	}
	m.connect().wantEvent("status")
	m.send("end\n")
	m.wantStatus(started, 0)
}

func TestConsoleClientWhoseInputTheVMMDoesNotTakeWaitsAlone(t *testing.T) {
	m := newMachine(t, "exec sleep 1000", nil)
	started := m.mustStart("run")
	// More than pipe and socket hold: the client's own write is what stops.
	typist := m.connect()
	typist.wantEvent("status")
	typist.say(`{"op":"console","tail":0}` + "\n")
	typist.wantEvent("console")
	m.must(typist.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)))
	if n, err := typist.Write(make([]byte, 4<<20)); !os.IsTimeout(err) {
		t.Errorf("%d bytes were taken, %v", n, err)
	}
	m.must(typist.Close())
	other := m.connect()
	other.wantEvent("status")
	other.say(`{"op":"signal","signal":"SIGKILL"}` + "\n")
	other.wantEvent("signalled")
	other.wantEvent("exited")
	m.wantStatus(started, 0)
}

func TestRequestsThatMakeNoSenseAreAnswered(t *testing.T) {
	m := newMachine(t, "read line", nil)
	started := m.mustStart("run")
	client := m.connect()
	client.wantEvent("status")
	for _, line := range []string{
		`nonsense`, `{"op":"dance"}`, `{"op":"signal","signal":"SIGSEGV"}`, `{"op":"signal"}`, `{"op":"console","tail":-1}`,
		`{"op":"console","tail":1048577}`, `{"op":"signal","signal":"SIGTERM","pid":1}`, `{"op":"signal","signal":"SIGTERM"}{}`,
	} {
		client.say(line + "\n")
		if event := client.wantEvent("error"); event["code"] != "request-invalid" {
			t.Errorf("%s: %v", line, event)
		}
	}
	client.say(strings.Repeat("x", 5000))
	if event := client.wantEvent("error"); event["code"] != "request-invalid" {
		t.Errorf("a line too long: %v", event)
	}
	if rest, _ := io.ReadAll(client.reader); len(rest) != 0 {
		t.Errorf("after a line too long: %q", rest)
	}
	m.send("go\n")
	m.wantStatus(started, 0)
}

func TestClientsBeyondTheLimitAreRefusedUntilOthersLeave(t *testing.T) {
	m := newMachine(t, "read line", nil)
	started := m.mustStart("run")
	var clients []*client
	for i := 0; i < 64; i++ {
		clients = append(clients, m.connect())
		clients[i].wantEvent("status")
	}
	if event := m.connect().wantEvent("error"); event["code"] != "too-many-clients" {
		t.Errorf("the 65th is told %v", event)
	}
	m.must(clients[0].Close())
	m.await("a free place", func() bool {
		conn, err := net.Dial("unix", m.path("shim.sock"))
		m.must(err)
		defer conn.Close()
		var event map[string]any
		m.must(json.NewDecoder(conn).Decode(&event))
		return event["event"] == "status"
	})
	m.send("go\n")
	clients[1].wantEvent("exited")
	m.wantStatus(started, 0)
}
