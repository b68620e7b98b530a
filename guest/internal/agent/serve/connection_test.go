package serve

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bandsox.dev/guest/internal/wire"
)

func TestHelloSaysWhoIsThere(t *testing.T) {
	_, path := newServer(t)
	h := dial(t, path)
	// An operation may be sent right behind the hello.
	h.send(object{"type": "hello", "protocol": 3, "minProtocol": 1})
	h.send(object{"type": "ping"})
	hello := h.expect("hello")
	if hello.Integer("protocol", 0) != 1 || hello.Text("agent") != "test" || len(hello.Texts("checksums")) != 3 || !hello.Has("stages") {
		t.Fatal(show(hello))
	}
	if h.expect("pong").Integer("uptimeMs", 0) != 7 {
		t.Fatal("another uptime")
	}
}

func TestAHostThatIsTooNewIsTold(t *testing.T) {
	_, path := newServer(t)
	h := dial(t, path)
	h.send(object{"type": "hello", "protocol": 3, "minProtocol": 2})
	h.expectError("protocol-unsupported")
	h.expectEnd()
}

func TestWhatMustNotComeEndsTheConnectionByName(t *testing.T) {
	_, path := newServer(t)
	for _, c := range []struct {
		name      string
		misbehave func(h *host)
	}{
		{"frame-kind-unknown", func(h *host) { h.write([]byte("GET / HTTP/1.1\r\n\r\n")) }},
		{"frame-too-large", func(h *host) { h.write([]byte{1, 255, 255, 255, 255}) }},
		{"message-not-json", func(h *host) { h.write([]byte{1, 0, 0, 0, 1, 'x'}) }},
		{"message-type-unknown", func(h *host) { h.send(object{"type": "pong", "uptimeMs": 1}) }},
		{"message-invalid", func(h *host) { h.send(object{"type": "hello", "protocol": 1, "minProtocol": 1}) }},
		{"message-invalid", func(h *host) { h.sendData([]byte("data without an operation")) }},
		{"message-invalid", func(h *host) { h.send(object{"type": "abort"}) }},
		{"message-invalid", func(h *host) { h.send(object{"type": "complete", "size": 1, "checksum": "00000000"}) }},
		{"message-invalid", func(h *host) { h.send(object{"type": "upload", "path": "/x", "checksum": "md5", "offset": 1}) }},
	} {
		h := greet(t, path)
		c.misbehave(h)
		message := h.expect("error")
		if message.Text("code") != "bad-request" || !strings.HasPrefix(message.Text("message"), c.name+":") {
			t.Errorf("%s: %s", c.name, show(message))
		}
		h.expectEnd()
	}
}

func TestSomethingElseThanHelloFirst(t *testing.T) {
	_, path := newServer(t)
	h := dial(t, path)
	h.send(object{"type": "ping"})
	h.expectError("bad-request")
	h.expectEnd()
}

func TestAHundredAndTwentyEightConnectionsAtOnce(t *testing.T) {
	_, path := newServer(t)
	var hosts []*host
	for i := 0; i < 128; i++ {
		hosts = append(hosts, greet(t, path))
	}
	for _, h := range hosts {
		h.expectUsable()
	}
}

func TestAStoppingMachineRefuses(t *testing.T) {
	server, path := newServer(t)
	asked := make(chan string, 1)
	server.Shutdown = func(mode string, grace time.Duration) {
		server.Stop()
		asked <- fmt.Sprint(mode, " ", grace)
	}
	other := greet(t, path)
	h := greet(t, path)
	h.send(object{"type": "shutdown", "mode": "poweroff", "graceMs": 1500})
	h.expect("stopping")
	h.expectEnd()
	if got := <-asked; got != "poweroff 1.5s" {
		t.Fatal(got)
	}
	other.send(object{"type": "exec", "argv": []string{"true"}})
	other.expectError("stopping")
	other.expectUsable()
}

func TestStatTellsLinksFromTargets(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	if err := os.WriteFile(folder+"/file", []byte("12345"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", folder+"/link"); err != nil {
		t.Fatal(err)
	}
	stat := func(message object) wire.Entry {
		t.Helper()
		message["type"] = "stat"
		h.send(message)
		var entry wire.Entry
		if err := json.Unmarshal(h.expect("info").Fields["file"], &entry); err != nil {
			t.Fatal(err)
		}
		return entry
	}
	if e := stat(object{"path": folder + "/link"}); e.Type != "file" || e.Size != 5 || e.Mode != 0o640 || e.Name != "link" {
		t.Fatalf("%+v", e)
	}
	if e := stat(object{"path": folder + "/link", "followLinks": false}); e.Type != "symlink" || e.Target != "file" {
		t.Fatalf("%+v", e)
	}
	if e := stat(object{"path": "/"}); e.Type != "directory" || e.Name != "/" {
		t.Fatalf("%+v", e)
	}
	if e := stat(object{"path": "/dev/null"}); e.Type != "character-device" {
		t.Fatalf("%+v", e)
	}
}

func TestAListComesInBatchesAndKeepsStrangeNames(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	const files = 700
	for i := 0; i < files; i++ {
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	strange := "\xff\n\x01<script>"
	if err := os.WriteFile(filepath.Join(folder, strange), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.send(object{"type": "list", "path": folder})
	seen := map[string]bool{}
	raw := ""
	for {
		message := h.next().Message
		if message.Type == "listed" {
			if message.Integer("count", 0) != files+1 || len(seen) != files+1 {
				t.Fatalf("%s, %d seen", show(message), len(seen))
			}
			break
		}
		var entries []wire.Entry
		if err := json.Unmarshal(message.Fields["files"], &entries); err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			seen[e.Name] = true
			if len(e.RawName) > 0 {
				raw = string(e.RawName)
			}
		}
	}
	if raw != strange {
		t.Fatalf("raw name %s", base64.StdEncoding.EncodeToString([]byte(raw)))
	}
}

func TestAnEmptyFolderIsListed(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "list", "path": t.TempDir()})
	if h.expect("listed").Integer("count", -1) != 0 {
		t.Fatal("not empty")
	}
}
