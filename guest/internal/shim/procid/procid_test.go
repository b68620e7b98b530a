package procid

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

func TestStatIsReadWhateverTheCommandIsCalled(t *testing.T) {
	stat := "12 (a) Z 1 (b) S 1 12 12 0 -1 4194560 106 0 0 0 0 0 0 0 20 0 1 0 148342 5578752 763"
	if state, startTime, err := parseStat([]byte(stat)); err != nil || state != 'S' || startTime != 148342 {
		t.Errorf("got %c, %d, %v", state, startTime, err)
	}
	for _, short := range []string{"", "12 (sh) S 1", "12 (sh"} {
		if _, _, err := parseStat([]byte(short)); err == nil {
			t.Errorf("%q is accepted", short)
		}
	}
}

func TestAnotherStartTimeIsAnotherProcess(t *testing.T) {
	id, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if alive, err := id.IsAlive(); err != nil || !alive {
		t.Errorf("this process is alive: %v, %v", alive, err)
	}
	id.StartTime--
	if alive, err := id.IsAlive(); err != nil || alive {
		t.Errorf("a predecessor with the same pid is alive: %v, %v", alive, err)
	}
	if _, err := Open(id); !errors.Is(err, ErrGone) {
		t.Errorf("opening it: %v", err)
	}
}

func TestZombieHasEndedAndReapedOneIsOutOfReach(t *testing.T) {
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := Of(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	handle, err := Open(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := handle.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := handle.Wait(); err != nil {
		t.Fatal(err)
	}
	if alive, err := id.IsAlive(); err != nil || alive {
		t.Errorf("a zombie is alive: %v, %v", alive, err)
	}
	_ = child.Wait() // says that it was killed
	if err := handle.Signal(syscall.SIGKILL); !errors.Is(err, ErrGone) {
		t.Errorf("a signal after the reaping: %v", err)
	}
	if err := handle.Close(); err != nil {
		t.Error(err)
	}
}
