package reaper

import (
	"syscall"
	"testing"
	"time"
)

// start runs a program of this machine in a group of its own.
func start(t *testing.T, r *Reaper, argv ...string) *Child {
	t.Helper()
	child, err := r.Start(argv[0], argv, &syscall.ProcAttr{
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
	r := New()
	go r.Run()
	for i := 0; i < 50; i++ {
		good := start(t, r, "/bin/sh", "-c", "exit 0")
		bad := start(t, r, "/bin/sh", "-c", "exit 7")
		if code := waitEnded(t, good).ExitStatus(); code != 0 {
			t.Fatalf("code %d of exit 0", code)
		}
		if code := waitEnded(t, bad).ExitStatus(); code != 7 {
			t.Fatalf("code %d of exit 7", code)
		}
	}
	killed := start(t, r, "/bin/sleep", "100")
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
	if _, err := r.Start("/no/such/program", []string{"x"}, &syscall.ProcAttr{}); err != syscall.ENOENT {
		t.Fatal(err)
	}
	if len(r.children) != 0 {
		t.Fatal("a child is known")
	}
}
