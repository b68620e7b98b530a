package serve

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bandsox.dev/guest/internal/wire"
)

const transferName = "transfer-number-1"

// parkUpload sends the begin of a file, loses the connection, and waits until the guest has noticed.
func parkUpload(t *testing.T, server *Server, path, file, name string, data []byte) {
	t.Helper()
	before := connections(server)
	h := greet(t, path)
	h.send(object{"type": "upload", "path": file, "checksum": "xxh64", "transfer": name})
	h.expect("ready")
	if len(data) > 0 {
		h.sendData(data)
	}
	h.conn.Close()
	waitFor(t, "the connection's end is noticed", func() bool { return connections(server) == before })
}

func temporaryFiles(t *testing.T, folder string) int {
	t.Helper()
	found, err := filepath.Glob(folder + "/.*.bandsox-*")
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

func TestTheHelloNamesWhatOutlivesAConnection(t *testing.T) {
	_, path := newServer(t)
	h := dial(t, path)
	h.send(object{"type": "hello", "protocol": 1, "minProtocol": 1})
	if names := fmt.Sprint(h.expect("hello").Texts("capabilities")); !strings.Contains(names, " resume attach ") {
		t.Fatal(names)
	}
}

func TestAnUploadGoesOnAtWhatWasWritten(t *testing.T) {
	server, path := newServer(t)
	folder := t.TempDir()
	data := sample(100000)
	parkUpload(t, server, path, folder+"/file", transferName, data[:60000])
	if temporaryFiles(t, folder) != 1 {
		t.Fatal("no temporary file waits")
	}
	h := greet(t, path)
	h.send(object{"type": "upload", "path": "/elsewhere", "checksum": "xxh64", "transfer": transferName, "offset": 5})
	if offset := h.expect("ready").Integer("offset", 0); offset != 60000 {
		t.Fatalf("goes on at %d", offset)
	}
	h.sendData(data[60000:])
	h.send(object{"type": "complete", "size": len(data), "checksum": xxh64(data)})
	h.expect("complete")
	expectContent(t, folder+"/file", data)
	expectOnly(t, folder, "file")
}

func TestATransferThatNobodyComesBackForIsReleased(t *testing.T) {
	server, path := newServer(t)
	server.transfers.Wait = 20 * time.Millisecond
	folder := t.TempDir()
	h := greet(t, path)
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName})
	h.expect("ready")
	h.sendData(sample(1000))
	h.conn.Close()
	waitFor(t, "the temporary file is removed", func() bool { return temporaryFiles(t, folder) == 0 })
	h = greet(t, path)
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName, "offset": 1000})
	h.expectError("transfer-unknown")
	h.send(object{"type": "download", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName, "offset": 1000})
	h.expectError("transfer-unknown")
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName})
	if h.expect("ready").Integer("offset", -1) != 0 {
		t.Fatal("not begun again")
	}
	h.send(object{"type": "abort"})
	h.expectError("aborted")
	expectOnly(t, folder)
}

func TestADownloadThatNobodyComesBackForIsClosed(t *testing.T) {
	server, path := newServer(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, sample(8<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	server.transfers.Wait = 20 * time.Millisecond
	before := openDescriptors(t)
	h := greet(t, path)
	h.send(object{"type": "download", "path": file, "checksum": "xxh64", "transfer": transferName})
	h.expect("ready")
	h.conn.Close()
	waitFor(t, "the file is closed", func() bool { return openDescriptors(t) <= before })
}

func TestTheTransferThatHasWaitedLongestMakesRoom(t *testing.T) {
	server, path := newServer(t)
	folder := t.TempDir()
	name := func(i int) string { return fmt.Sprintf("transfer-number-%02d", i) }
	for i := 0; i < 66; i++ {
		parkUpload(t, server, path, fmt.Sprintf("%s/file%d", folder, i), name(i), []byte("x"))
	}
	if count := temporaryFiles(t, folder); count != 64 {
		t.Fatalf("%d transfers wait", count)
	}
	h := greet(t, path)
	for i := 0; i < 2; i++ {
		h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": name(i), "offset": 1})
		h.expectError("transfer-unknown")
	}
	for _, i := range []int{2, 65} {
		h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": name(i), "offset": 1})
		h.expect("ready")
		h.send(object{"type": "abort"})
		h.expectError("aborted")
	}
	server.Stop()
	expectOnly(t, folder)
}

func TestTheAnswerAboutAFinishedUploadIsGivenAgain(t *testing.T) {
	server, path := newServer(t)
	folder := t.TempDir()
	data := sample(100000)
	before := connections(server)
	first := greet(t, path)
	first.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName})
	first.expect("ready")
	first.sendData(data)
	first.send(object{"type": "complete", "size": len(data), "checksum": xxh64(data)})
	first.conn.Close() // the answer is lost
	waitFor(t, "the connection's end is noticed", func() bool { return connections(server) == before })
	h := greet(t, path)
	resume := func() {
		t.Helper()
		h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName, "offset": 1})
		if offset := h.expect("ready").Integer("offset", 0); offset != int64(len(data)) {
			t.Fatalf("goes on at %d", offset)
		}
	}
	if err := os.WriteFile(folder+"/file", nil, 0o644); err != nil { // to see that it is not written twice
		t.Fatal(err)
	}
	resume()
	h.send(object{"type": "complete", "size": len(data), "checksum": xxh64(data)})
	h.expect("complete")
	expectContent(t, folder+"/file", nil)
	expectOnly(t, folder, "file")
	// The host has read the answer when it begins the next operation.
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName, "offset": 1})
	h.expectError("transfer-unknown")
}

func TestAFinishedUploadIsConfirmedOnlyAsItWas(t *testing.T) {
	_, path := newServer(t)
	file := filepath.Join(t.TempDir(), "file")
	finish := func(name string) *host {
		h := greet(t, path)
		if answer := h.upload(object{"path": file, "transfer": name}, []byte("data"), xxh64([]byte("data"))); answer.Type != "complete" {
			t.Fatal(show(answer))
		}
		other := greet(t, path)
		other.send(object{"type": "upload", "path": file, "checksum": "xxh64", "transfer": name, "offset": 4})
		other.expect("ready")
		return other
	}
	h := finish("transfer-number-1")
	h.send(object{"type": "complete", "size": 5, "checksum": xxh64([]byte("data"))})
	h.expectError("size-mismatch")
	h = finish("transfer-number-2")
	h.send(object{"type": "complete", "size": 4, "checksum": xxh64([]byte("other"))})
	h.expectError("checksum-mismatch")
	h = finish("transfer-number-3")
	h.send(object{"type": "abort"})
	h.expectError("aborted")
	h.expectUsable()
	h = finish("transfer-number-4")
	h.sendData([]byte("more"))
	h.expectError("bad-request")
	h.expectEnd()
	expectContent(t, file, []byte("data"))
}

func TestATransferIsTakenFromAConnectionThatNobodyReads(t *testing.T) {
	_, path := newServer(t)
	folder := t.TempDir()
	data := sample(8 << 20)
	if err := os.WriteFile(folder+"/file", data, 0o644); err != nil {
		t.Fatal(err)
	}
	stuck := greet(t, path)
	stuck.send(object{"type": "download", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName})
	stuck.expect("ready") // which it has the transfer by; or it would take it from the other one
	// The guest waits in a write by now, or will: its socket does not hold a window.
	h := greet(t, path)
	for i := 0; i < 2; i++ {
		received, ready, complete := h.downloadBy(folder+"/file", transferName)
		if !bytes.Equal(received, data) || ready.Integer("offset", -1) != 0 || complete.Text("checksum") != xxh64(data) {
			t.Fatalf("%s, %d bytes, %s", show(ready), len(received), show(complete))
		}
	}
	stuck.expectEnd()

	idle := greet(t, path)
	idle.send(object{"type": "upload", "path": folder + "/other", "checksum": "xxh64", "transfer": "transfer-number-2"})
	idle.expect("ready")
	if answer := h.upload(object{"path": folder + "/other", "transfer": "transfer-number-2"}, data, xxh64(data)); answer.Type != "complete" {
		t.Fatal(show(answer))
	}
	idle.expectEnd()
	expectContent(t, folder+"/other", data)
	expectOnly(t, folder, "file", "other")
}

// downloadBy is download with a name for the transfer.
func (h *host) downloadBy(path, name string) ([]byte, wire.Message, wire.Message) {
	h.t.Helper()
	h.send(object{"type": "download", "path": path, "checksum": "xxh64", "transfer": name})
	return h.receive()
}

func TestADownloadGoesOnInTheFileThatItBeganWith(t *testing.T) {
	server, path := newServer(t)
	file := filepath.Join(t.TempDir(), "file")
	data := sample(6 << 20) // more than a window: it cannot be sent whole before the break
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	before := connections(server)
	h := greet(t, path)
	h.send(object{"type": "download", "path": file, "checksum": "sha256", "transfer": transferName})
	first := h.expect("ready")
	part := len(h.next().Payload)
	h.conn.Close()
	waitFor(t, "the connection's end is noticed", func() bool { return connections(server) == before })
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	h = greet(t, path)
	h.send(object{"type": "download", "path": file, "checksum": "sha256", "transfer": transferName, "offset": part - 10})
	rest, ready, _ := h.receive()
	for _, name := range []string{"size", "mode", "mtimeMs"} {
		if first.Integer(name, -1) != ready.Integer(name, -2) {
			t.Fatalf("%s after %s", show(ready), show(first))
		}
	}
	if !bytes.Equal(rest, data[part-10:]) {
		t.Fatalf("%d other bytes came", len(rest))
	}
	// The host's `complete` has ended it.
	h.send(object{"type": "download", "path": file, "checksum": "sha256", "transfer": transferName, "offset": 1})
	h.expectError("transfer-unknown")
}

func TestADownloadWaitsForTheHostsWord(t *testing.T) {
	server, path := newServer(t)
	before := connections(server)
	h := greet(t, path)
	h.send(object{"type": "download", "path": "/proc/version", "checksum": "xxh64", "transfer": transferName})
	h.expect("ready")
	text := append([]byte(nil), h.next().Payload...)
	h.expect("complete")
	h.conn.Close()
	waitFor(t, "the connection's end is noticed", func() bool { return connections(server) == before })
	for _, offset := range []int{len(text), 3} {
		h = greet(t, path)
		h.send(object{"type": "download", "path": "/proc/version", "checksum": "xxh64", "transfer": transferName, "offset": offset})
		h.expect("ready")
		if offset < len(text) && !bytes.Equal(h.next().Payload, text[offset:]) {
			t.Fatal("other bytes came")
		}
		if complete := h.expect("complete"); complete.Text("checksum") != xxh64(text) || complete.Integer("size", 0) != int64(len(text)) {
			t.Fatal(show(complete))
		}
	}
	h.send(object{"type": "complete", "size": len(text), "checksum": xxh64(text)})
	h.send(object{"type": "download", "path": "/proc/version", "checksum": "xxh64", "transfer": transferName, "offset": 3})
	h.expectError("transfer-unknown")
}

func TestAbortReleasesATransferAtOnce(t *testing.T) {
	_, path := newServer(t)
	folder := t.TempDir()
	h := greet(t, path)
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName})
	h.expect("ready")
	h.sendData(sample(1000))
	h.send(object{"type": "abort"})
	h.expectError("aborted")
	expectOnly(t, folder)
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName, "offset": 1000})
	h.expectError("transfer-unknown")
	h.send(object{"type": "download", "path": "/proc/version", "checksum": "xxh64", "transfer": transferName})
	h.expect("ready")
	h.send(object{"type": "abort"})
	for h.next().Message.Type != "error" {
	}
	h.send(object{"type": "download", "path": "/proc/version", "checksum": "xxh64", "transfer": transferName, "offset": 1})
	h.expectError("transfer-unknown")
}

func TestAHostThatBreaksTheProtocolLosesItsTransfer(t *testing.T) {
	_, path := newServer(t)
	folder := t.TempDir()
	begin := func() *host {
		h := greet(t, path)
		h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName, "size": 10})
		if h.expect("ready").Integer("offset", -1) != 0 {
			t.Fatal("the transfer was kept")
		}
		return h
	}
	for name, misbehave := range map[string]func(h *host){
		"data beyond the size": func(h *host) { h.sendData(sample(11)) },
		"another operation":    func(h *host) { h.send(object{"type": "ping"}) },
		"no frame":             func(h *host) { h.write([]byte{9, 9, 9, 9, 9}) },
		"beyond what was written": func(h *host) {
			other := greet(t, path)
			other.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": transferName, "offset": 5})
			other.expectError("bad-request")
			other.expectEnd()
		},
	} {
		h := begin()
		misbehave(h)
		h.expectEnd()
		waitFor(t, "nothing is left after "+name, func() bool { return temporaryFiles(t, folder) == 0 })
	}
	// A name belongs to one kind of operation. Who uses it for another does not disturb it.
	h := begin()
	other := greet(t, path)
	other.send(object{"type": "download", "path": "/proc/version", "checksum": "xxh64", "transfer": transferName})
	other.expectError("bad-request")
	other.expectEnd()
	h.send(object{"type": "abort"})
	h.expectError("aborted")
}

func TestAStoppingMachineKeepsNoTemporaryFile(t *testing.T) {
	server, path := newServer(t)
	folder := t.TempDir()
	before := connections(server)
	parkUpload(t, server, path, folder+"/waits", "transfer-number-1", sample(1000))
	h := greet(t, path)
	h.send(object{"type": "upload", "path": folder + "/runs", "checksum": "xxh64", "transfer": "transfer-number-2"})
	h.expect("ready")
	server.Stop()
	if count := temporaryFiles(t, folder); count != 1 {
		t.Fatalf("%d temporary files beside a transfer that runs", count)
	}
	h.conn.Close()
	waitFor(t, "the connection's end is noticed", func() bool { return connections(server) == before })
	expectOnly(t, folder)
}
