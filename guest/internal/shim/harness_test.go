package shim_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/shim"
	"bandsox.dev/guest/internal/shim/launch"
	"bandsox.dev/guest/internal/shim/procid"
	"bandsox.dev/guest/internal/shim/record"
)

// TestMain makes this test program a shim when it is started as one: the tests have real shims in real processes.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "run":
			os.Exit(shim.Run(os.Stdout))
		case "adopt":
			os.Exit(shim.Adopt(os.Stdout))
		case launch.Command:
			os.Exit(launch.Become(os.Args[2]))
		case "vmm-with-monitor":
			os.Exit(vmmWithMonitor(len(os.Args) > 2))
		case "vmm-with-uart":
			os.Exit(vmmWithUART())
		case "daemon-that-agrees":
			os.Exit(daemonThatAgrees())
		case "vmm-that-drops":
			os.Exit(vmmThatDrops())
		}
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what must come; nothing takes that long unless it is broken.
const patience = 10 * time.Second

// machine is the directory of one VM.
type machine struct {
	t   *testing.T
	dir string
}

type settings map[string]any

// newMachine writes a shim.json with sh -c script as the VMM, changed by more.
func newMachine(t *testing.T, script string, more settings) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir()}
	config := settings{
		"version": 1, "sandbox": "sbx_test",
		"vmm":     settings{"argv": []string{"/bin/sh", "-c", script}, "env": settings{"PATH": os.Getenv("PATH")}, "maxFiles": 256},
		"console": settings{"log": "console.log", "maxBytes": 1 << 20},
	}
	for key, value := range more {
		config[key] = value
	}
	text, err := json.Marshal(config)
	m.must(err)
	m.write("shim.json", string(text))
	t.Cleanup(m.killAll)
	return m
}

// killAll ends what a failed test left running.
func (m *machine) killAll() {
	var run record.Run
	if text, err := os.ReadFile(m.path("run.json")); err != nil || json.Unmarshal(text, &run) != nil {
		return
	}
	for _, id := range []*procid.ID{&run.Shim, run.Vsock, &run.VMM} {
		if id == nil {
			continue
		}
		if alive, err := id.IsAlive(); err == nil && alive {
			m.t.Logf("killing %d, which is left", id.Pid)
			m.must(syscall.Kill(id.Pid, syscall.SIGKILL))
		}
	}
}

// reply is the line that a shim prints.
type reply struct {
	Event   string
	Code    string
	Message string
	VMM     procid.ID
}

// shimProcess is a shim that this test started.
type shimProcess struct {
	*exec.Cmd
	reply reply
}

// start starts a shim and waits for its line, and for its letting go of stdout.
func (m *machine) start(command string) *shimProcess {
	m.t.Helper()
	started := &shimProcess{Cmd: exec.Command("/proc/self/exe", command)}
	started.Dir, started.Stderr = m.dir, os.Stderr
	// A descriptor that a careless starter lets the shim inherit; it must not reach the VMM.
	started.ExtraFiles = []*os.File{os.Stderr}
	out, err := started.StdoutPipe()
	m.must(err)
	m.must(started.Start())
	reader := bufio.NewReader(out)
	line, err := reader.ReadBytes('\n')
	m.must(err)
	m.must(json.Unmarshal(line, &started.reply))
	if rest, err := reader.ReadByte(); err == nil {
		m.t.Fatalf("stdout goes on after its line, with %q", rest)
	}
	return started
}

// mustStart is start of a VM that has to come up.
func (m *machine) mustStart(command string) *shimProcess {
	m.t.Helper()
	started := m.start(command)
	if started.reply.Event != "started" {
		m.t.Fatalf("%s: %+v", command, started.reply)
	}
	return started
}

// mustFail is start of a VM that must not come up, for the reason named.
func (m *machine) mustFail(command, code string) reply {
	m.t.Helper()
	started := m.start(command)
	if started.reply.Event != "failed" || started.reply.Code != code {
		m.t.Fatalf("%s: %+v, want failed with %s", command, started.reply, code)
	}
	if err := started.Wait(); started.ProcessState.ExitCode() != 1 {
		m.t.Fatalf("%s: ended with %v, want status 1", command, err)
	}
	return started.reply
}

// kill kills the shim and nobody else.
func (m *machine) kill(started *shimProcess) {
	m.t.Helper()
	m.must(started.Process.Kill())
	_ = started.Wait() // says that it was killed
}

func (m *machine) exit() (exit record.Exit) {
	m.t.Helper()
	m.must(json.Unmarshal([]byte(m.read("exit.json")), &exit))
	return exit
}

func (m *machine) run() (run record.Run) {
	m.t.Helper()
	m.must(json.Unmarshal([]byte(m.read("run.json")), &run))
	return run
}

// wantFiles compares what is in the directory, subdirectories by their path.
func (m *machine) wantFiles(want ...string) {
	m.t.Helper()
	var found []string
	m.must(filepath.WalkDir(m.dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			found = append(found, strings.TrimPrefix(path, m.dir+"/"))
		}
		return err
	}))
	sort.Strings(want)
	if strings.Join(found, " ") != strings.Join(want, " ") {
		m.t.Errorf("files are\n  %s\nwant\n  %s", strings.Join(found, " "), strings.Join(want, " "))
	}
}

// leftAfterEnd are the files that stay when a VM without a daemon has ended.
var leftAfterEnd = []string{"console.log", "exit.json", "run.json", "shim.json", "shim.lock", "shim.log", "vmm.log"}

func (m *machine) wantGone(what string, id procid.ID) {
	m.t.Helper()
	if alive, err := id.IsAlive(); err != nil || alive {
		m.t.Errorf("%s %d: alive %v, %v", what, id.Pid, alive, err)
	}
}

// await waits for something that has no event of its own.
func (m *machine) await(what string, is func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func (m *machine) awaitInFile(name, text string) {
	m.t.Helper()
	m.await(name+" with "+text, func() bool {
		content, err := os.ReadFile(m.path(name))
		return err == nil && strings.Contains(string(content), text)
	})
}

// client is a connection to shim.sock.
type client struct {
	*net.UnixConn
	m      *machine
	reader *bufio.Reader
}

func (m *machine) connect() *client {
	m.t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: m.path("shim.sock"), Net: "unix"})
	m.must(err)
	m.t.Cleanup(func() { _ = conn.Close() })
	m.must(conn.SetDeadline(time.Now().Add(patience)))
	return &client{UnixConn: conn, m: m, reader: bufio.NewReader(conn)}
}

// wantEvent reads the next line.
func (c *client) wantEvent(name string) (event map[string]any) {
	c.m.t.Helper()
	line, err := c.reader.ReadBytes('\n')
	if err != nil {
		c.m.t.Fatalf("waiting for %s: %v after %q", name, err, line)
	}
	c.m.must(json.Unmarshal(line, &event))
	if event["event"] != name {
		c.m.t.Fatalf("got %s, want %s", line, name)
	}
	return event
}

func (c *client) say(text string) {
	c.m.t.Helper()
	_, err := c.Write([]byte(text))
	c.m.must(err)
}

// send writes to the console's FIFO, as a manager without a shim could.
func (m *machine) send(text string) {
	m.t.Helper()
	file, err := os.OpenFile(m.path("console.in"), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	m.must(err)
	_, err = file.WriteString(text)
	m.must(err)
	m.must(file.Close())
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) read(name string) string {
	m.t.Helper()
	text, err := os.ReadFile(m.path(name))
	m.must(err)
	return string(text)
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	m.must(os.WriteFile(m.path(name), []byte(text), 0o600))
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// wantStatus waits for a shim's own end.
func (m *machine) wantStatus(started *shimProcess, status int) {
	m.t.Helper()
	err := started.Wait()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) || started.ProcessState.ExitCode() != status {
		m.t.Errorf("the shim ended with %v, want %d; its log: %s", started.ProcessState, status, m.read("shim.log"))
	}
}
