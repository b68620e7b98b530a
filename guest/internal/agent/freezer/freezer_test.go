package freezer

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// roots are where a host may have its control groups.
var roots = []string{Root, Root + "/unified"}

// newFreezer works on a group of the host's own in place of the root of a machine: one that holds only what the test puts there.
func newFreezer(t *testing.T) (*Freezer, string) {
	for _, root := range roots {
		path := filepath.Join(root, fmt.Sprintf("bandsox-test-%d", os.Getpid()))
		if err := os.Mkdir(path, 0o755); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(path, "cgroup.freeze")); err != nil {
			os.Remove(path)
			continue
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		own := filepath.Join(root, "cgroup.procs")
		t.Cleanup(func() {
			if err := os.WriteFile(own, []byte("0"), 0o644); err != nil {
				t.Error(err)
			}
			until(t, "everybody has left the group", func() bool { return os.Remove(path) == nil })
		})
		return f, path
	}
	t.Skip("no cgroup v2 in which this user may make a group")
	return nil, ""
}

// counter counts in a group until the test's end; count gives how far it is.
func counter(t *testing.T, group, shell string) (count func() int) {
	command := exec.Command("/bin/sh", "-c", "echo $$ > "+group+"/cgroup.procs; "+shell)
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan int, 1)
	go func() {
		seen := 0
		scanner := bufio.NewScanner(output)
		for scanner.Scan() {
			seen++
			select {
			case <-lines:
			default:
			}
			lines <- seen
		}
		_, _ = io.Copy(io.Discard, output)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
		_ = command.Wait()
	})
	last := <-lines
	return func() int {
		select {
		case last = <-lines:
		default:
		}
		return last
	}
}

const counting = "while :; do echo x; sleep 0.01; done"

func until(t *testing.T, what string, isTrue func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !isTrue(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func mustFreeze(t *testing.T, f *Freezer) int {
	t.Helper()
	count, warnings, err := f.Freeze()
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	return count
}

// thaw waits until everybody is back, too.
func thaw(t *testing.T, f *Freezer) {
	t.Helper()
	f.Thaw()
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if _, err := f.root.child(ownName); !os.IsNotExist(err) {
		t.Fatalf("the group of our own is still there: %v", err)
	}
}

// standsStill fails when it does not.
func standsStill(t *testing.T, count func() int) {
	t.Helper()
	time.Sleep(30 * time.Millisecond) // what was written before is on its way
	before := count()
	time.Sleep(150 * time.Millisecond)
	if after := count(); after != before {
		t.Fatalf("it went on from %d to %d", before, after)
	}
}

func goesOn(t *testing.T, count func() int) {
	t.Helper()
	before := count()
	until(t, "it goes on", func() bool { return count() > before })
}

func TestProcessesStandStillAndGoOnWhereTheyWere(t *testing.T) {
	f, root := newFreezer(t)
	count := counter(t, root, counting)
	if frozen := mustFreeze(t, f); frozen < 1 {
		t.Fatalf("%d processes frozen", frozen)
	}
	standsStill(t, count)
	thaw(t, f)
	goesOn(t, count)
	back, err := os.ReadFile(filepath.Join(root, "cgroup.procs"))
	if err != nil || len(strings.Fields(string(back))) < 2 {
		t.Fatalf("not moved back: %q, %v", back, err)
	}
	thaw(t, f) // once more is harmless
}

func TestGroupsOfTheUserAreFrozenInPlaceAndItsFrozenOnesAreLeftAlone(t *testing.T) {
	f, root := newFreezer(t)
	inner := filepath.Join(root, "user", "inner")
	still := filepath.Join(root, "still")
	for _, folder := range []string{inner, still} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, folder := range []string{inner, filepath.Dir(inner), still} {
			until(t, "the group is empty", func() bool { return os.Remove(folder) == nil })
		}
	})
	count := counter(t, inner, counting)
	pausedByUser := counter(t, still, counting)
	if err := os.WriteFile(filepath.Join(still, "cgroup.freeze"), []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustFreeze(t, f)
	standsStill(t, count)
	where, err := os.ReadFile(filepath.Join(inner, "cgroup.procs"))
	if err != nil || len(where) == 0 {
		t.Fatalf("it was moved out of its group: %q, %v", where, err)
	}
	thaw(t, f)
	goesOn(t, count)
	standsStill(t, pausedByUser)
}

func TestThoseThatForkAllTheTimeAreAllFrozen(t *testing.T) {
	f, root := newFreezer(t)
	count := counter(t, root, "while :; do (echo x; true | cat); done")
	for i := 0; i < 5; i++ {
		mustFreeze(t, f)
		standsStill(t, count)
		left, err := os.ReadFile(filepath.Join(root, "cgroup.procs"))
		if err != nil || strings.TrimSpace(string(left)) != fmt.Sprint(os.Getpid()) {
			t.Fatalf("not frozen: %q, %v", left, err)
		}
		thaw(t, f)
		goesOn(t, count)
	}
}

func TestAFrozenProcessCanBeKilled(t *testing.T) {
	f, root := newFreezer(t)
	counter(t, root, counting)
	mustFreeze(t, f)
	pids, err := f.own.processes()
	if err != nil || len(pids) == 0 {
		t.Fatal(pids, err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "they are gone", func() bool {
		left, err := f.own.processes()
		return err == nil && len(left) == 0
	})
	thaw(t, f)
}

func TestAFolderThatIsNoControlGroupIsRefused(t *testing.T) {
	if _, err := Open(t.TempDir()); err == nil {
		t.Fatal("it was taken")
	}
}
