package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestOrdinaryFolderIsNoGroupAndNothingIsLeftOfIt(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "sbx_test")
	err := Make(folder, map[string]string{"cpu.max": "50000 100000"})
	if err == nil || !strings.Contains(err.Error(), "cpu.max") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("the folder: %v", err)
	}
	if err := Enter(folder); !os.IsNotExist(err) {
		t.Errorf("entering it: %v", err)
	}
	if err := Remove(folder); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
}

func TestFolderWithFilesIsNotRemoved(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(folder); err == nil {
		t.Error("it says that it is removed")
	}
	if _, err := os.Stat(filepath.Join(folder, "kept")); err != nil {
		t.Error(err)
	}
}

// TestRealGroup needs root, and a host with control groups of version 2.
func TestRealGroup(t *testing.T) {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		t.Skipf("no control groups of version 2 here: %v", err)
	}
	parent := filepath.Join(root, "bandsox-go-test")
	if err := os.Mkdir(parent, 0o755); err != nil {
		t.Skipf("no right to make groups here: %v", err)
	}
	t.Cleanup(func() {
		if err := Remove(parent); err != nil {
			t.Error(err)
		}
	})
	for _, group := range []string{root, parent} {
		if err := set(filepath.Join(group, "cgroup.subtree_control"), "+cpu +pids"); err != nil {
			t.Skipf("no controllers here: %v", err)
		}
	}
	folder := filepath.Join(parent, "sbx_test")
	if err := Make(folder, map[string]string{"cpu.max": "50000 100000", "pids.max": "100"}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(folder, "cpu.max")); err != nil || string(text) != "50000 100000\n" {
		t.Errorf("cpu.max is %q, %v", text, err)
	}
	if err := Make(folder, nil); !os.IsExist(err) {
		t.Errorf("a second one of the name: %v", err)
	}
	sleeper := exec.Command("sh", "-c", "echo 0 > "+folder+"/cgroup.procs; echo in; sleep 600 & sleep 600")
	out, err := sleeper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := Remove(folder); err != nil {
		t.Error(err)
	}
	if err := sleeper.Wait(); err == nil {
		t.Error("what was in it lives on")
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("the folder: %v", err)
	}
}
