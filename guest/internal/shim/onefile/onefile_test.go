package onefile

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// Roles of this program, in a process of its own.
const (
	launcherRole = "ONEFILE_LAUNCHER"
	programRole  = "ONEFILE_PROGRAM"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(programRole) != "":
		beProgram()
	case os.Getenv(launcherRole) != "":
		fmt.Fprintln(os.Stderr, beLauncher())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// beLauncher installs the filter, passes the listener on over descriptor 3, and becomes the program.
func beLauncher() error {
	runtime.LockOSThread()
	const prSetNoNewPrivs = 38
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	listener, err := Install()
	if err != nil {
		return err
	}
	if err := syscall.Sendmsg(3, []byte{0}, syscall.UnixRights(listener), nil, 0); err != nil {
		return err
	}
	syscall.CloseOnExec(3)
	return syscall.Exec("/proc/self/exe", []string{"program"}, []string{programRole + "=1"})
}

// seen is what the program found out.
type seen struct {
	// Other is a file that is not the one; Descriptor and Mode are of the one; Again is of the same path afterwards.
	Other, Descriptor, Mode int
	Punch, OtherPunch       string
	Text, After             string
	Again                   string
}

func beProgram() {
	var found seen
	other, err := syscall.Open("other", syscall.O_RDWR, 0)
	must(err)
	found.Other = other
	found.Descriptor, err = syscall.Open("state/memory", syscall.O_RDWR, 0)
	must(err)
	mode, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(found.Descriptor), syscall.F_GETFL, 0)
	if errno != 0 {
		must(errno)
	}
	found.Mode = int(mode) & syscall.O_ACCMODE
	mapped, err := syscall.Mmap(found.Descriptor, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE)
	must(err)
	found.Text = string(mapped[:6])
	copy(mapped, "CHANGE")
	const punchHole = 3 // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
	found.Punch = fmt.Sprint(syscall.Fallocate(found.Descriptor, punchHole, 0, 4096))
	found.OtherPunch = fmt.Sprint(syscall.Fallocate(other, punchHole, 0, 4096))
	must(syscall.Madvise(mapped, syscall.MADV_DONTNEED))
	found.After = string(mapped[:6])
	_, err = syscall.Open("state/memory", syscall.O_RDWR, 0)
	found.Again = fmt.Sprint(err)
	must(json.NewEncoder(os.Stdout).Encode(found))
	os.Exit(0)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestTheProgramGetsOneFileForReading(t *testing.T) {
	folder := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Mkdir(filepath.Join(folder, "state"), 0o700))
	content := append([]byte("memory"), make([]byte, 4090)...)
	check(os.WriteFile(filepath.Join(folder, "state/memory"), content, 0o444))
	check(os.WriteFile(filepath.Join(folder, "other"), content, 0o644))
	check(os.Chdir(folder))
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	check(err)
	program := exec.Command("/proc/self/exe")
	program.Env, program.Stderr = []string{launcherRole + "=1"}, os.Stderr
	program.ExtraFiles = []*os.File{os.NewFile(uintptr(ends[1]), "gate")}
	out, err := program.StdoutPipe()
	check(err)
	check(program.Start())
	defer program.Wait()
	check(program.ExtraFiles[0].Close())
	rights := make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := syscall.Recvmsg(ends[0], make([]byte, 1), rights, 0)
	check(err)
	messages, err := syscall.ParseSocketControlMessage(rights[:n])
	check(err)
	if len(messages) == 0 {
		t.Fatal("no listener came")
	}
	listeners, err := syscall.ParseUnixRights(&messages[0])
	check(err)
	check(Supply(listeners[0], "state/memory"))
	var found seen
	check(json.NewDecoder(out).Decode(&found))
	if found.Other < 3 || found.Other == Descriptor {
		t.Errorf("another file is descriptor %d", found.Other)
	}
	want := seen{
		Other: found.Other, Descriptor: Descriptor, Mode: syscall.O_RDONLY, Punch: "<nil>", OtherPunch: "<nil>",
		Text: "memory", After: "memory", Again: syscall.ENOSYS.Error(),
	}
	if found != want {
		t.Errorf("the program found\n%+v, want\n%+v", found, want)
	}
	memory, err := os.ReadFile("state/memory")
	check(err)
	if string(memory) != string(content) {
		t.Error("the file has changed")
	}
	// So that the lie is told of that descriptor alone.
	if hole, err := os.ReadFile("other"); err != nil || hole[0] != 0 {
		t.Errorf("no hole in the other file: %v %v", hole[:6], err)
	}
}

func TestSupplyEndsWithTheProgram(t *testing.T) {
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chdir(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	program := exec.Command("/proc/self/exe")
	program.Env = []string{launcherRole + "=1"}
	program.ExtraFiles = []*os.File{os.NewFile(uintptr(ends[1]), "gate")}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	rights := make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := syscall.Recvmsg(ends[0], make([]byte, 1), rights, 0)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) == 0 {
		t.Fatal("no listener came", err)
	}
	listeners, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	// It opens a file that is not there, is let go on, and ends.
	if err := Supply(listeners[0], "state/memory"); err != nil {
		t.Error(err)
	}
	if err := program.Wait(); err == nil {
		t.Error("the program found a file")
	}
}
