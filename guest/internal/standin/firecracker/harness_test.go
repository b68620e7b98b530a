package firecracker_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/shim"
	"bandsox.dev/guest/internal/shim/launch"
	"bandsox.dev/guest/internal/standin/firecracker"
	"bandsox.dev/guest/internal/wire"
)

// patience is how long a test waits for what must come; moment for what must not.
const (
	patience = 10 * time.Second
	moment   = 100 * time.Millisecond
)

// asVMM is this test program's first word when it shall be the stand-in.
const asVMM = "stand-in-firecracker"

// TestMain makes this test program a stand-in, or a shim, when it is started as one: the tests have real processes.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case asVMM:
			host := firecracker.Host{Input: os.Stdin, Output: os.Stdout, Errors: os.Stderr, Exit: os.Exit}
			os.Exit(firecracker.Run(os.Args[2:], host))
		case "run":
			os.Exit(shim.Run(os.Stdout))
		case launch.Command:
			os.Exit(launch.Become(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

type object map[string]any

// vmm is a stand-in in a folder of its own.
type vmm struct {
	t       *testing.T
	dir     string
	process *exec.Cmd
	console *os.File // its stdin
	api     net.Conn
}

// prepare makes the files of a machine.
func prepare(t *testing.T) *vmm {
	t.Helper()
	v := &vmm{t: t, dir: t.TempDir()}
	v.write("kernel", "\x7fELF and no more")
	v.write("initrd", "")
	v.write("disk", strings.Repeat("\x00", 4096))
	return v
}

// run starts the program with words, its stdout in out.log and its stderr in err.log.
func (v *vmm) run(words ...string) *vmm {
	v.t.Helper()
	v.process = exec.Command("/proc/self/exe", append([]string{asVMM}, words...)...)
	v.process.Dir = v.dir
	reader, writer, err := os.Pipe()
	must(v.t, err)
	defer reader.Close()
	v.console, v.process.Stdin = writer, reader
	out, err := os.Create(v.path("out.log"))
	must(v.t, err)
	defer out.Close()
	failures, err := os.Create(v.path("err.log"))
	must(v.t, err)
	defer failures.Close()
	v.process.Stdout, v.process.Stderr = out, failures
	must(v.t, v.process.Start())
	v.t.Cleanup(func() {
		_ = v.process.Process.Signal(syscall.SIGTERM) // it may have ended; its guest's processes end with it
		timer := time.AfterFunc(patience, func() { _ = v.process.Process.Kill() })
		_ = v.process.Wait() // likewise
		timer.Stop()
		_ = writer.Close()
	})
	return v
}

// start is run with an API, to which it connects.
func start(t *testing.T, words ...string) *vmm {
	t.Helper()
	v := prepare(t).run(append(words, "--api-sock", "api.sock")...)
	v.connect()
	return v
}

func (v *vmm) connect() {
	v.t.Helper()
	v.await("the API socket", func() bool {
		conn, err := net.Dial("unix", v.path("api.sock"))
		v.api = conn
		return err == nil
	})
	v.t.Cleanup(func() { v.api.Close() })
}

// call is a request; status 0 is no answer.
func (v *vmm) call(method, path string, body any) (status int, answer object) {
	v.t.Helper()
	text := []byte(nil)
	if raw, isText := body.(string); isText {
		text = []byte(raw)
	} else if body != nil {
		var err error
		text, err = json.Marshal(body)
		must(v.t, err)
	}
	must(v.t, v.api.SetDeadline(time.Now().Add(patience)))
	_, err := fmt.Fprintf(v.api, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", method, path, len(text), text)
	must(v.t, err)
	head := ""
	for one := make([]byte, 1); !strings.HasSuffix(head, "\r\n\r\n"); head += string(one) {
		if _, err := v.api.Read(one); err != nil {
			return 0, nil
		}
	}
	_, err = fmt.Sscanf(head, "HTTP/1.1 %d", &status)
	must(v.t, err)
	if _, rest, hasBody := strings.Cut(head, "Content-Length: "); hasBody {
		length := 0
		_, err = fmt.Sscanf(rest, "%d", &length)
		must(v.t, err)
		body := make([]byte, length)
		_, err = io.ReadFull(v.api, body)
		must(v.t, err)
		must(v.t, json.Unmarshal(body, &answer))
	}
	return status, answer
}

func (v *vmm) wantDone(method, path string, body any) {
	v.t.Helper()
	if status, answer := v.call(method, path, body); status != 204 {
		v.t.Fatalf("%s %s: %d %v, want 204", method, path, status, answer)
	}
}

// wantFault wants an answer that says no, with words in it.
func (v *vmm) wantFault(method, path string, body any, words string) {
	v.t.Helper()
	status, answer := v.call(method, path, body)
	if text, _ := answer["fault_message"].(string); status != 400 || !strings.Contains(text, words) {
		v.t.Errorf("%s %s %v: %d %v\nwant 400 %s", method, path, body, status, answer, words)
	}
}

func (v *vmm) wantState(want string) {
	v.t.Helper()
	if _, answer := v.call("GET", "/", nil); answer["state"] != want {
		v.t.Errorf("the state is %v, want %s", answer["state"], want)
	}
}

const bootArguments = "console=ttyS0 quiet bandsox.port=9000 bandsox.serial=ttyS0"

func (v *vmm) bootSource(arguments string) object {
	return object{"kernel_image_path": v.path("kernel"), "initrd_path": v.path("initrd"), "boot_args": arguments}
}

// configure is all but the start.
func (v *vmm) configure(arguments string) {
	v.t.Helper()
	v.wantDone("PUT", "/machine-config", object{"vcpu_count": 1, "mem_size_mib": 16, "track_dirty_pages": true})
	v.wantDone("PUT", "/boot-source", v.bootSource(arguments))
	v.wantDone("PUT", "/drives/root", object{"drive_id": "root", "path_on_host": v.path("disk"), "is_root_device": true})
	v.wantDone("PUT", "/vsock", object{"guest_cid": 3, "uds_path": "v.sock"})
}

func action(name string) object { return object{"action_type": name} }

func state(name string) object { return object{"state": name} }

// booted is a machine whose agent listens.
func booted(t *testing.T, words ...string) *vmm {
	t.Helper()
	v := start(t, words...)
	v.configure(bootArguments)
	v.wantDone("PUT", "/actions", action("InstanceStart"))
	v.awaitConsole("ready on vsock port 9000")
	return v
}

// dial gives a connection to the agent; nil when it was refused.
func (v *vmm) dial() net.Conn {
	v.t.Helper()
	conn := v.dialTo(9000)
	if !readOK(v.t, conn) {
		return nil
	}
	return conn
}

// dialTo asks for a port, and does not read the answer.
func (v *vmm) dialTo(port int) net.Conn {
	v.t.Helper()
	conn, err := net.Dial("unix", v.path("v.sock"))
	must(v.t, err)
	v.t.Cleanup(func() { conn.Close() })
	must(v.t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	must(v.t, err)
	return conn
}

func readOK(t *testing.T, conn net.Conn) bool {
	t.Helper()
	line := ""
	for one := make([]byte, 1); !strings.HasSuffix(line, "\n"); line += string(one) {
		if _, err := conn.Read(one); err != nil {
			return false
		}
	}
	if !strings.HasPrefix(line, "OK ") {
		t.Fatalf("the handshake says %q", line)
	}
	return true
}

// agent is a connection whose hello is over.
type agent struct {
	net.Conn
	t       *testing.T
	decoder *wire.Decoder
	hello   wire.Message
}

func greet(t *testing.T, conn net.Conn) *agent {
	t.Helper()
	if conn == nil {
		t.Fatal("refused")
	}
	a := &agent{conn, t, wire.NewDecoder(conn, wire.ToHost), wire.Message{}}
	a.send(object{"type": "hello", "protocol": 1, "minProtocol": 1})
	a.hello = a.expect("hello")
	return a
}

func (a *agent) send(message object) {
	a.t.Helper()
	frame, err := wire.AppendMessage(nil, message)
	must(a.t, err)
	_, err = a.Write(frame)
	must(a.t, err)
}

func (a *agent) expect(kind string) wire.Message {
	a.t.Helper()
	frame, err := a.decoder.Next()
	must(a.t, err)
	if frame.Kind != wire.KindMessage || frame.Message.Type != kind {
		a.t.Fatalf("got %+v, want %s", frame, kind)
	}
	return frame.Message
}

// wantEnd waits for the process's own end: its status, or minus a signal.
func (v *vmm) wantEnd(want int) {
	v.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = v.process.Process.Kill() })
	err := v.process.Wait()
	var failed *exec.ExitError
	if !timer.Stop() || err != nil && !errors.As(err, &failed) {
		v.t.Fatalf("it does not end: %v; it printed %s", err, v.read("out.log"))
	}
	got := v.process.ProcessState.ExitCode()
	if status := v.process.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		got = -int(status.Signal())
	}
	if got != want {
		v.t.Errorf("it ended with %d, want %d; it printed %s%s", got, want, v.read("out.log"), v.read("err.log"))
	}
}

func (v *vmm) await(what string, is func() bool) {
	v.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			v.t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func (v *vmm) awaitConsole(words string) {
	v.t.Helper()
	v.await("the console says "+words, func() bool { return strings.Contains(v.read("out.log"), words) })
}

func (v *vmm) path(name string) string { return filepath.Join(v.dir, name) }

func (v *vmm) read(name string) string {
	v.t.Helper()
	text, err := os.ReadFile(v.path(name))
	must(v.t, err)
	return string(bytes.ToValidUTF8(text, []byte("?")))
}

func (v *vmm) write(name, text string) {
	v.t.Helper()
	must(v.t, os.WriteFile(v.path(name), []byte(text), 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
