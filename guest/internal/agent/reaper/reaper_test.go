package reaper

import (
	"sync"
	"syscall"
	"testing"
	"time"
)

var shared struct {
	sync.Once
	reaper *Reaper
}

// ofAllTests is the one reaper that collects in this process: a second one would take the statuses of the first one's children.
func ofAllTests() *Reaper {
	shared.Do(func() {
		shared.reaper = New()
		go shared.reaper.Run()
	})
	return shared.reaper
}

func command(argv ...string) Program { return Program{Path: argv[0], Argv: argv} }

// start runs a program of this machine in a group of its own.
func start(t *testing.T, r *Reaper, program Program) *Child {
	t.Helper()
	child, err := r.Start(program, &syscall.ProcAttr{
		Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(child.PidFD) })
	return child
}

func waitEnded(t *testing.T, child *Child) syscall.WaitStatus {
	t.Helper()
	select {
	case <-child.Ended():
		return child.Status()
	case <-time.After(10 * time.Second):
		t.Fatal("no status")
		return 0
	}
}

func TestEveryChildGetsItsOwnStatus(t *testing.T) {
	r := ofAllTests()
	for i := 0; i < 50; i++ {
		good := start(t, r, command("/bin/sh", "-c", "exit 0"))
		bad := start(t, r, command("/bin/sh", "-c", "exit 7"))
		if code := waitEnded(t, good).ExitStatus(); code != 0 {
			t.Fatalf("code %d of exit 0", code)
		}
		if code := waitEnded(t, bad).ExitStatus(); code != 7 {
			t.Fatalf("code %d of exit 7", code)
		}
	}
	killed := start(t, r, command("/bin/sleep", "100"))
	if sent, err := killed.SignalGroup(syscall.SIGKILL); !sent || err != nil {
		t.Fatal(sent, err)
	}
	if status := waitEnded(t, killed); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("status %v", status)
	}
	if sent, err := killed.SignalGroup(syscall.SIGKILL); sent || err != nil {
		t.Fatal("a number that may belong to another was signalled")
	}
}

func TestAProgramThatCannotRunLeavesNoChild(t *testing.T) {
	r := New()
	if _, err := r.Start(Program{Path: "/no/such/program", Argv: []string{"x"}}, &syscall.ProcAttr{}); err != syscall.ENOENT {
		t.Fatal(err)
	}
	if len(r.children) != 0 {
		t.Fatal("a child is known")
	}
}

func TestChildrenWithASignalOfTheirOwnAreKnownUntilTheyEnd(t *testing.T) {
	r := ofAllTests()
	usual := start(t, r, command("/bin/sleep", "100"))
	own := start(t, r, Program{Path: "/bin/sleep", Argv: []string{"sleep", "100"}, StopSignal: syscall.SIGQUIT})
	if found := r.StopSignals(); len(found) != 1 || found[own.Pid] != syscall.SIGQUIT {
		t.Errorf("%v", found)
	}
	for _, child := range []*Child{usual, own} {
		if sent, err := child.SignalGroup(syscall.SIGKILL); !sent || err != nil {
			t.Fatal(sent, err)
		}
		waitEnded(t, child)
	}
	if found := r.StopSignals(); len(found) != 0 {
		t.Errorf("%v", found)
	}
}
