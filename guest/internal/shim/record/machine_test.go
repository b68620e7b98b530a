package record

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

// inFolder makes a folder the working directory, as the VM's is the shim's.
func inFolder(t *testing.T, folder string) {
	t.Helper()
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chdir(folder); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Chdir(before); err != nil {
			t.Error(err)
		}
	})
}

func write(t *testing.T, machine Machine) {
	t.Helper()
	if err := WriteMachine(machine); err != nil {
		t.Fatal(err)
	}
	if now, err := ReadMachine(); err != nil || *now != machine {
		t.Fatalf("it reads as %+v (%v), want %+v", now, err, machine)
	}
}

func TestMachineIsReplacedWhole(t *testing.T) {
	inFolder(t, t.TempDir())
	if now, err := ReadMachine(); now != nil || err != nil {
		t.Errorf("before: %+v, %v", now, err)
	}
	write(t, Machine{Status: MachineStarting, Since: Now()})
	write(t, Machine{Status: MachineIOError, Since: Now(), Reason: strings.Repeat("x", MaxReasonBytes)})
	write(t, Machine{Status: MachineRunning, Since: Now()})
	if err := os.Remove(MachineSpare); err != nil {
		t.Fatal(err)
	}
	write(t, Machine{Status: MachinePaused, Since: Now()})
	for _, name := range []string{MachineFile, MachineSpare} {
		if info, err := os.Stat(name); err != nil || info.Size() != machineBytes || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if err := WriteMachine(Machine{Status: strings.Repeat("x", machineBytes)}); err == nil {
		t.Error("one that is too long is written")
	}
}

func TestMachineIsWrittenOnAFullDisk(t *testing.T) {
	folder := t.TempDir()
	if err := syscall.Mount("bandsox-test", folder, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(folder, 0); err != nil {
			t.Error(err)
		}
	})
	inFolder(t, folder)
	write(t, Machine{Status: MachineRunning, Since: Now()})
	if err := os.WriteFile("filler", make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk does not fill: %v", err)
	}
	if err := os.WriteFile("other", []byte("x"), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	for i := 0; i < 3; i++ {
		write(t, Machine{Status: MachineIOError, Since: Now()})
		write(t, Machine{Status: MachineRunning, Since: Now()})
	}
}
