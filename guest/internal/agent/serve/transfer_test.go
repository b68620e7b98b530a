package serve

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"bandsox.dev/guest/internal/wire"
)

func xxh64(data []byte) string {
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], xxhash.Sum64(data))
	return hex.EncodeToString(sum[:])
}

// upload sends a file within the window and gives the last answer.
func (h *host) upload(message object, data []byte, checksum string) wire.Message {
	h.t.Helper()
	message["type"] = "upload"
	message["checksum"] = "xxh64"
	h.send(message)
	ready := h.next().Message
	if ready.Type != "ready" {
		return ready
	}
	window := ready.Integer("windowBytes", 0)
	chunk := int(ready.Integer("chunkBytes", 0))
	var sent, acked int64
	for rest := data; len(rest) > 0; {
		for sent-acked+int64(chunk) > window {
			answer := h.next().Message
			if answer.Type == "error" {
				h.send(object{"type": "abort"})
				return answer
			}
			acked = answer.Integer("offset", 0)
		}
		size := chunk
		if size > len(rest) {
			size = len(rest)
		}
		h.sendData(rest[:size])
		rest = rest[size:]
		sent += int64(size)
	}
	h.send(object{"type": "complete", "size": len(data), "checksum": checksum})
	for {
		if answer := h.next().Message; answer.Type != "ack" {
			return answer
		}
	}
}

// download receives a file and gives its bytes, `ready` and the guest's `complete`.
func (h *host) download(path string) ([]byte, wire.Message, wire.Message) {
	h.t.Helper()
	h.send(object{"type": "download", "path": path, "checksum": "xxh64"})
	return h.receive()
}

// receive takes the answer to a download.
func (h *host) receive() ([]byte, wire.Message, wire.Message) {
	h.t.Helper()
	ready := h.next().Message
	if ready.Type != "ready" {
		return nil, ready, wire.Message{}
	}
	var data []byte
	begin := int(ready.Integer("offset", 0))
	acked := begin
	for {
		frame := h.next()
		if frame.Kind == wire.KindMessage {
			h.send(object{"type": "complete", "size": begin + len(data), "checksum": xxh64(data)})
			return data, ready, frame.Message
		}
		data = append(data, frame.Payload...)
		if begin+len(data)-acked >= 1<<20 {
			acked = begin + len(data)
			h.send(object{"type": "ack", "offset": acked})
		}
	}
}

func sample(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	return data
}

// expectOnly fails when a folder holds anything but the named files: temporary files must not stay.
func expectOnly(t *testing.T, folder string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, entry := range entries {
		found = append(found, entry.Name())
	}
	if strings.Join(found, " ") != strings.Join(names, " ") {
		t.Fatalf("the folder holds %v, %v was meant", found, names)
	}
}

func expectContent(t *testing.T, path string, data []byte) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content, data) {
		t.Fatalf("%s holds %d other bytes", path, len(content))
	}
}

func TestFilesOfManySizesGoThereAndBack(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	path := filepath.Join(folder, "file")
	for _, size := range []int{0, 1, 65535, 65536, 65537, 262144, 1 << 20, 9<<20 + 3} {
		data := sample(size)
		answer := h.upload(object{"path": path, "size": size}, data, xxh64(data))
		if answer.Type != "complete" || answer.Text("checksum") != xxh64(data) {
			t.Fatalf("upload of %d: %s", size, show(answer))
		}
		expectContent(t, path, data)
		received, ready, complete := h.download(path)
		if !bytes.Equal(received, data) || ready.Integer("size", -1) != int64(size) || complete.Text("checksum") != xxh64(data) {
			t.Fatalf("download of %d: %s, %s, %d bytes", size, show(ready), show(complete), len(received))
		}
	}
	expectOnly(t, folder, "file")
}

func TestAFrameOfAMegabyteIsTakenInParts(t *testing.T) {
	h := connect(t)
	path := filepath.Join(t.TempDir(), "file")
	data := sample(1 << 20)
	h.send(object{"type": "upload", "path": path, "checksum": "md5"})
	h.expect("ready")
	h.sendData(data)
	h.send(object{"type": "abort"})
	for h.next().Message.Type == "ack" {
	}
	h.send(object{"type": "upload", "path": path, "checksum": "xxh64"})
	h.expect("ready")
	h.sendData(data)
	h.send(object{"type": "complete", "size": len(data), "checksum": xxh64(data)})
	for h.next().Message.Type == "ack" {
	}
	expectContent(t, path, data)
}

func TestAWrongChecksumLeavesTheOldFile(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	path := filepath.Join(folder, "file")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if answer := h.upload(object{"path": path}, []byte("new"), xxh64([]byte("other"))); answer.Text("code") != "checksum-mismatch" {
		t.Fatal(show(answer))
	}
	if answer := h.upload(object{"path": path, "size": 5}, []byte("new"), xxh64([]byte("new"))); answer.Text("code") != "size-mismatch" {
		t.Fatal(show(answer))
	}
	expectContent(t, path, []byte("old"))
	expectOnly(t, folder, "file")
	h.expectUsable()
}

func TestAnAbortedUploadLeavesNothing(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64"})
	h.expect("ready")
	h.sendData(sample(1000))
	h.send(object{"type": "abort"})
	h.expectError("aborted")
	expectOnly(t, folder)
	h.send(object{"type": "abort"}) // crossed the answer
	h.expectUsable()
}

func TestAnUploadCutOffLeavesNothing(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "size": 5000})
	h.expect("ready")
	h.sendData(sample(1000))
	h.conn.Close()
	waitFor(t, "the temporary file is removed", func() bool {
		entries, err := os.ReadDir(folder)
		return err == nil && len(entries) == 0
	})
}

func TestDataBeyondTheSizeEndsTheConnection(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "size": 10})
	h.expect("ready")
	h.sendData(sample(11))
	h.expectError("bad-request")
	h.expectEnd()
	expectOnly(t, folder)
}

func TestAFullDiskIsNamedAndKeepsTheConnectionInStep(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small file system needs root")
	}
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(folder, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	h := connect(t)
	data := sample(6 << 20) // more than a window: the host is still sending when it hears of it
	if answer := h.upload(object{"path": folder + "/file"}, data, xxh64(data)); answer.Text("code") != "no-space" {
		t.Fatal(show(answer))
	}
	h.expectUsable()
	expectOnly(t, folder)
}

func TestModeAndTheOldFilesMode(t *testing.T) {
	h := connect(t)
	path := filepath.Join(t.TempDir(), "file")
	expectMode := func(mode uint32) {
		t.Helper()
		var stat syscall.Stat_t
		if err := syscall.Stat(path, &stat); err != nil {
			t.Fatal(err)
		}
		if stat.Mode&0o7777 != mode {
			t.Fatalf("mode %o, %o was meant", stat.Mode&0o7777, mode)
		}
	}
	h.upload(object{"path": path}, nil, xxh64(nil))
	expectMode(0o644)
	h.upload(object{"path": path, "mode": 0o4751}, nil, xxh64(nil))
	expectMode(0o4751)
	h.upload(object{"path": path}, nil, xxh64(nil))
	expectMode(0o4751)
}

func TestOwnerOfTheUserAndOfTheOldFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners need root")
	}
	h := connect(t)
	path := filepath.Join(t.TempDir(), "file")
	expectOwner := func(uid, gid uint32) {
		t.Helper()
		var stat syscall.Stat_t
		if err := syscall.Stat(path, &stat); err != nil {
			t.Fatal(err)
		}
		if stat.Uid != uid || stat.Gid != gid {
			t.Fatalf("owner %d:%d, %d:%d was meant", stat.Uid, stat.Gid, uid, gid)
		}
	}
	h.upload(object{"path": path, "user": "1234:4321"}, nil, xxh64(nil))
	expectOwner(1234, 4321)
	h.upload(object{"path": path}, nil, xxh64(nil))
	expectOwner(1234, 4321)
	h.upload(object{"path": path, "user": "0:0"}, nil, xxh64(nil))
	expectOwner(0, 0)
}

func TestAnUploadOntoALinkReplacesWhatItPointsTo(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	for link, target := range map[string]string{
		folder + "/relative": "sub/file", folder + "/absolute": folder + "/sub/other", folder + "/twice": "relative", folder + "/dangling": "sub/new",
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(folder+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"relative": "file", "absolute": "other", "dangling": "new", "twice": "file"} {
		data := []byte("through " + link)
		if answer := h.upload(object{"path": folder + "/" + link}, data, xxh64(data)); answer.Type != "complete" {
			t.Fatal(show(answer))
		}
		expectContent(t, folder+"/sub/"+target, data)
		if info, err := os.Lstat(folder + "/" + link); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Fatalf("%s is no link any more", link)
		}
	}
	expectOnly(t, folder+"/sub", "file", "new", "other")
}

func TestTransfersThatCannotBeHaveTheirCodes(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	if err := os.WriteFile(folder+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(folder+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", folder+"/loop"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ operation, path, code string }{
		{"download", folder + "/nothing", "not-found"},
		{"download", folder, "is-a-directory"},
		{"download", folder + "/fifo", "not-a-file"},
		{"download", folder + "/file/x", "not-a-directory"},
		{"download", folder + "/loop", "path-invalid"},
		{"download", "/dev/null", "not-a-file"},
		{"upload", folder, "is-a-directory"},
		{"upload", folder + "/", "is-a-directory"},
		{"upload", "/", "is-a-directory"},
		{"upload", folder + "/fifo", "not-a-file"},
		{"upload", "/dev/null", "not-a-file"},
		{"upload", folder + "/nothing/file", "not-found"},
		{"upload", folder + "/file/x", "not-a-directory"},
		{"upload", folder + "/loop", "path-invalid"},
		{"upload", folder + "/" + strings.Repeat("n", 256), "path-invalid"},
		{"stat", folder + "/nothing", "not-found"},
		{"list", folder + "/nothing", "not-found"},
		{"list", folder + "/file", "not-a-directory"},
		{"list", folder + "/fifo", "not-a-directory"},
	} {
		h.send(object{"type": c.operation, "path": c.path, "checksum": "xxh64"})
		message := h.expect("error")
		if message.Text("code") != c.code {
			t.Errorf("%s %s: %s, %s was meant", c.operation, c.path, show(message), c.code)
		}
	}
	h.send(object{"type": "upload", "path": folder + "/file", "checksum": "crc32"})
	h.expectError("checksum-unsupported")
	expectOnly(t, folder, "fifo", "file", "loop")
}

func TestALongNameIsUploaded(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	name := strings.Repeat("n", 255)
	if answer := h.upload(object{"path": folder + "/" + name}, []byte("x"), xxh64([]byte("x"))); answer.Type != "complete" {
		t.Fatal(show(answer))
	}
	expectOnly(t, folder, name)
}

func TestMissingFoldersAreMadeWhenAsked(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	if answer := h.upload(object{"path": folder + "/a/b/file", "makeParents": true}, []byte("x"), xxh64([]byte("x"))); answer.Type != "complete" {
		t.Fatal(show(answer))
	}
	expectContent(t, folder+"/a/b/file", []byte("x"))
	if info, err := os.Stat(folder + "/a"); err != nil || info.Mode().Perm() != 0o755 {
		t.Fatal("the folder's mode is another than 0755")
	}
}

func TestADownloadWaitsForItsWindow(t *testing.T) {
	h := connect(t)
	path := filepath.Join(t.TempDir(), "file")
	data := sample(8 << 20)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	h.send(object{"type": "download", "path": path, "checksum": "xxh64"})
	window := h.expect("ready").Integer("windowBytes", 0)
	const batch = 262144 // the guest waits until a whole batch fits
	var received int64
	for received <= window-batch {
		received += int64(len(h.next().Payload))
	}
	if err := h.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := h.decoder.Next()
		if err != nil {
			break // nothing more comes
		}
		received += int64(len(frame.Payload))
	}
	if received > window {
		t.Fatalf("%d bytes in a window of %d", received, window)
	}
	if err := h.conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		t.Fatal(err)
	}
	h.send(object{"type": "abort"})
	h.expectError("aborted")
	h.send(object{"type": "ack", "offset": received}) // crossed the answer
	h.expectUsable()
}

func TestAnAckBeyondWhatWasSentEndsTheConnection(t *testing.T) {
	h := connect(t)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, sample(8<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	h.send(object{"type": "download", "path": path, "checksum": "xxh64"})
	h.expect("ready")
	h.send(object{"type": "ack", "offset": 9 << 20})
	for {
		frame := h.next()
		if frame.Kind == wire.KindMessage {
			if frame.Message.Text("code") != "bad-request" {
				t.Fatal(show(frame.Message))
			}
			break
		}
	}
	h.expectEnd()
}

func TestAFileThatSaysItIsEmptyIsAnnouncedWithItsTrueSize(t *testing.T) {
	data, ready, complete := connect(t).download("/proc/self/status")
	if ready.Integer("size", -1) != int64(len(data)) || len(data) == 0 || complete.Integer("size", 0) != int64(len(data)) {
		t.Fatalf("%s, %d bytes, %s", show(ready), len(data), show(complete))
	}
}
