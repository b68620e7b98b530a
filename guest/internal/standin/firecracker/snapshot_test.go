package firecracker_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func (v *vmm) snapshot(kind string) object {
	return object{"snapshot_type": kind, "snapshot_path": v.path("state"), "mem_file_path": v.path("memory")}
}

// load is a request for what `of` has saved.
func load(of *vmm, more object) object {
	body := object{
		"snapshot_path": of.path("state"), "mem_backend": object{"backend_type": "File", "backend_path": of.path("memory")}, "resume_vm": true,
	}
	for name, value := range more {
		body[name] = value
	}
	return body
}

// saved is a paused machine with a Full snapshot.
func saved(t *testing.T) *vmm {
	t.Helper()
	v := booted(t)
	v.wantDone("PATCH", "/vm", state("Paused"))
	v.wantDone("PUT", "/snapshot/create", v.snapshot("Full"))
	return v
}

func TestTwoClonesLiveBesideTheirOriginal(t *testing.T) {
	v := saved(t)
	v.wantDone("PATCH", "/vm", state("Resumed"))
	bootID := greet(t, v.dial()).hello.Text("bootId")
	clones := []*vmm{start(t), start(t)}
	for _, clone := range clones {
		clone.wantDone("PUT", "/snapshot/load", load(v, object{"clock_realtime": true}))
		clone.wantState("Running")
	}
	for _, one := range append(clones, v) {
		a := greet(t, one.dial())
		if a.hello.Text("bootId") != bootID || bootID == "" {
			t.Errorf("the boot is %q, want %q", a.hello.Text("bootId"), bootID)
		}
		if output := a.command("echo", "here"); output != "here\n" {
			t.Errorf("the guest says %q", output)
		}
	}
	// A clone of a clone is as good.
	clones[0].wantDone("PATCH", "/vm", state("Paused"))
	clones[0].wantDone("PUT", "/snapshot/create", clones[0].snapshot("Full"))
	third := start(t)
	third.wantDone("PUT", "/snapshot/load", load(clones[0], object{"vsock_override": object{"uds_path": "w.sock"}}))
	if _, err := os.Stat(third.path("w.sock")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(third.path("v.sock")); err == nil {
		t.Error("the socket of the original's name is there")
	}
}

func TestAMemoryFileIsSparseAndOfTheMachinesSize(t *testing.T) {
	v := saved(t)
	info, err := os.Stat(v.path("memory"))
	must(t, err)
	if blocks := info.Sys().(*syscall.Stat_t).Blocks; info.Size() != 16<<20 || blocks > 2048 {
		t.Errorf("%d bytes in %d blocks", info.Size(), blocks)
	}
}

func TestASnapshotNeedsAPausedMachineAndAFolder(t *testing.T) {
	v := booted(t)
	v.wantFault("PUT", "/snapshot/create", v.snapshot("Full"),
		"Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
	v.wantDone("PATCH", "/vm", state("Paused"))
	v.wantFault("PUT", "/snapshot/create", object{"snapshot_path": "/nope/state", "mem_file_path": v.path("memory")},
		"Create snapshot error: Cannot perform open on the snapshot backing file: No such file or directory (os error 2)")
	v.wantFault("PUT", "/snapshot/create", object{"snapshot_path": v.path("state"), "mem_file_path": "/nope/memory"},
		"Create snapshot error: Cannot perform open on the memory backing file: No such file or directory (os error 2)")
}

func TestALoadedMachineWaitsUntilItIsResumed(t *testing.T) {
	v := saved(t)
	clone := start(t)
	clone.wantDone("PUT", "/snapshot/load", load(v, object{"resume_vm": false}))
	clone.wantState("Paused")
	answered := make(chan bool, 1)
	go func() { answered <- clone.dial() != nil }()
	select {
	case <-answered:
		t.Fatal("a paused machine answers")
	case <-time.After(moment):
	}
	clone.wantDone("PATCH", "/vm", state("Resumed"))
	if !<-answered {
		t.Error("the connection that waited was refused")
	}
}

func TestConnectionsOfASnapshotAreDeadAndTheHostIsNotTold(t *testing.T) {
	v := booted(t)
	a := greet(t, v.dial())
	v.wantDone("PATCH", "/vm", state("Paused"))
	v.wantDone("PUT", "/snapshot/create", v.snapshot("Full"))
	v.wantDone("PATCH", "/vm", state("Resumed"))
	must(t, a.SetReadDeadline(time.Now().Add(moment)))
	if n, err := a.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes, %v, want silence", n, err)
	}
	must(t, a.SetReadDeadline(time.Now().Add(patience)))
	a.send(object{"type": "ping"})
	if n, err := a.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		t.Errorf("%d bytes, %v, want the end", n, err)
	}
	greet(t, v.dial())
}

func TestNothingCanBeLoadedAfterAConfiguration(t *testing.T) {
	v := saved(t)
	clone := start(t)
	clone.wantFault("PUT", "/machine-config", object{"vcpu_count": 0, "mem_size_mib": 1}, "Machine config error")
	clone.wantFault("PUT", "/snapshot/load", load(v, nil),
		"Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	clone.wantState("Not started") // it lives on
	logged := start(t)
	logged.wantDone("PUT", "/logger", object{"log_path": logged.path("log")})
	logged.wantDone("PUT", "/metrics", object{"metrics_path": logged.path("metrics")})
	logged.wantDone("PUT", "/snapshot/load", load(v, nil))
}

func TestAFailedLoadEndsTheProcess(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(original, clone *vmm, body object)
		words string
	}{
		"no state":      {func(o, _ *vmm, _ object) { os.Remove(o.path("state")) }, "Failed to open snapshot file: No such file or directory"},
		"bad state":     {func(o, _ *vmm, _ object) { o.write("state", "nonsense") }, "bitcode error"},
		"no memory":     {func(o, _ *vmm, _ object) { os.Remove(o.path("memory")) }, "Failed to load guest memory: No such file or directory"},
		"short memory":  {func(o, _ *vmm, _ object) { o.write("memory", "short") }, "Cannot create mmap region"},
		"no disk":       {func(o, _ *vmm, _ object) { os.Remove(o.path("disk")) }, "Block: Virtio backend error: Error manipulating the backing file"},
		"socket in use": {func(_, clone *vmm, _ object) { clone.write("v.sock", "") }, "VsockUnixBackend: Error binding to the host-side Unix socket: Address already in use (os error 98)"},
		"unknown tap": {
			func(_, _ *vmm, body object) {
				body["network_overrides"] = []object{{"iface_id": "eth9", "host_dev_name": "tap9"}}
			}, "Unknown Network Device.",
		},
	} {
		t.Run(name, func(t *testing.T) {
			v, clone := saved(t), start(t)
			body := load(v, nil)
			c.spoil(v, clone, body)
			clone.wantFault("PUT", "/snapshot/load", body, c.words)
			clone.wantEnd(1)
		})
	}
}

func TestADiffIsNoUseWithoutItsFull(t *testing.T) {
	v := saved(t)
	v.wantDone("PATCH", "/vm", state("Resumed"))
	v.wantDone("PATCH", "/vm", state("Paused"))
	full, err := os.ReadFile(v.path("memory"))
	must(t, err)
	must(t, os.Remove(v.path("memory")))
	v.wantDone("PUT", "/snapshot/create", v.snapshot("Diff"))
	lost := start(t)
	lost.wantDone("PUT", "/snapshot/load", load(v, nil))
	lost.wantEnd(0) // its kernel has panicked
	lost.awaitConsole("Kernel panic")
	// Laid over the Full it is a whole memory.
	v.write("memory", string(full))
	v.wantDone("PUT", "/snapshot/create", v.snapshot("Diff"))
	whole := start(t)
	whole.wantDone("PUT", "/snapshot/load", load(v, nil))
	greet(t, whole.dial())
}

func TestAnOldReleaseRefusesADiffThatNobodyTracked(t *testing.T) {
	v := start(t, "--stand-in-version", "1.10.1")
	v.wantDone("PUT", "/boot-source", v.bootSource(bootArguments))
	v.wantDone("PUT", "/actions", action("InstanceStart"))
	v.wantDone("PATCH", "/vm", state("Paused"))
	v.wantFault("PUT", "/snapshot/create", v.snapshot("Diff"), "Create snapshot error: Cannot get dirty bitmap: ")
}

func TestATapOfACloneIsNamedByAnOverride(t *testing.T) {
	v := start(t)
	name := filepath.Base(filepath.Dir(v.dir))
	name = "o" + name[len(name)-8:]
	v.configure(bootArguments)
	v.wantDone("PUT", "/network-interfaces/eth0", object{"iface_id": "eth0", "host_dev_name": name})
	v.wantDone("PUT", "/actions", action("InstanceStart"))
	v.wantDone("PATCH", "/vm", state("Paused"))
	v.wantDone("PUT", "/snapshot/create", v.snapshot("Full"))
	same, other := start(t), start(t)
	same.wantFault("PUT", "/snapshot/load", load(v, nil), "Device or resource busy (os error 16)")
	same.wantEnd(1)
	other.wantDone("PUT", "/snapshot/load", load(v, object{"network_overrides": []object{{"iface_id": "eth0", "host_dev_name": name + "c"}}}))
}

func TestAnIdentityIsToldOnTheConsoleAndItsPortIsSavedWithTheMachine(t *testing.T) {
	v := booted(t)
	a := greet(t, v.dial())
	a.send(object{"type": "identify", "port": 9007, "hostname": "other", "timeUs": 1, "entropy": "AAECAwQFBgcICQoLDA0ODw=="})
	identified := a.expect("identified")
	if failures := identified.Texts("failures"); len(failures) != 0 || identified.Integer("port", 0) != 9007 {
		t.Fatal(failures, identified.Integer("port", 0))
	}
	v.awaitConsole("told: hostname other")
	v.awaitConsole("told: entropy be45cb2605bf36be (16 bytes)")
	v.wantDone("PATCH", "/vm", state("Paused"))
	v.wantDone("PUT", "/snapshot/create", v.snapshot("Full"))
	clone := start(t)
	clone.wantDone("PUT", "/snapshot/load", load(v, nil))
	if conn := clone.dialTo(9000); readOK(t, conn) {
		t.Error("the clone's agent is still on the port of the boot")
	}
	if conn := clone.dialTo(9007); !readOK(t, conn) {
		t.Error("the clone's agent is not on the port that was saved")
	}
}
