package shim_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestStartAndExitAreRecorded(t *testing.T) {
	m := newMachine(t, "echo out; echo err >&2; read line; exit 7", settings{"remove": []string{"left.sock"}})
	m.write("exit.json", `{"code":0,"at":"before"}`)
	m.write("left.sock", "")
	started := m.mustStart("run")
	run := m.run()
	if run.VMM != started.reply.VMM || run.Shim.Pid != started.Process.Pid || run.StartedAt == "" {
		t.Errorf("run.json is %+v, printed was %+v", run, started.reply)
	}
	m.wantFiles("console.in", "console.log", "console.out", "run.json", "shim.json", "shim.lock", "shim.log", "shim.sock", "vmm.err", "vmm.log")
	m.send("go\n")
	m.wantStatus(started, 0)
	if exit := m.exit(); exit.Code == nil || *exit.Code != 7 || exit.Signal != "" || exit.Unknown || exit.At == "" {
		t.Errorf("exit.json is %+v", exit)
	}
	if m.read("console.log") != "out\n" || m.read("vmm.log") != "err\n" {
		t.Errorf("logs are %q and %q", m.read("console.log"), m.read("vmm.log"))
	}
	m.wantFiles(leftAfterEnd...)
}

func TestOutputIsCompleteWhenTheVMMEndsRightBehindIt(t *testing.T) {
	const lines, maxBytes = 50000, 100000
	m := newMachine(t, fmt.Sprint("seq 1 ", lines), settings{"console": settings{"log": "console.log", "maxBytes": maxBytes}})
	m.wantStatus(m.mustStart("run"), 0)
	var all strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintln(&all, i)
	}
	older, newer := m.read("console.log.1"), m.read("console.log")
	if len(older) != maxBytes || len(newer) > maxBytes || !strings.HasSuffix(all.String(), older+newer) {
		t.Errorf("the logs hold %d and %d bytes, the last ones %q", len(older), len(newer), newer[len(newer)-20:])
	}
}

func TestKilledVMMIsRecordedByItsSignal(t *testing.T) {
	m := newMachine(t, "read line", nil)
	started := m.mustStart("run")
	client := m.connect()
	status := client.wantEvent("status")
	if status["vsock"] != "none" || status["vmm"].(map[string]any)["pid"] != float64(started.reply.VMM.Pid) {
		t.Errorf("status is %v", status)
	}
	client.say(`{"op":"signal","signal":"SIGKILL"}` + "\n")
	client.wantEvent("signalled")
	if exited := client.wantEvent("exited"); exited["signal"] != "SIGKILL" || exited["code"] != nil {
		t.Errorf("exited is %v", exited)
	}
	if exit := m.exit(); exit.Signal != "SIGKILL" || exit.Code != nil {
		t.Errorf("exit.json is %+v", exit)
	}
	if _, err := client.reader.ReadByte(); err == nil {
		t.Error("the connection goes on after the end")
	}
	m.wantStatus(started, 0)
	m.wantFiles(leftAfterEnd...)
}

func TestDirectoryCanBeUsedAgainAsSoonAsTheEndIsTold(t *testing.T) {
	m := newMachine(t, "read line", nil)
	for i := 0; i < 3; i++ {
		started := m.mustStart("run")
		client := m.connect()
		client.wantEvent("status")
		m.send("go\n")
		client.wantEvent("exited")
		defer m.wantStatus(started, 0)
	}
}

func TestChildrenOfTheVMMEndWithIt(t *testing.T) {
	m := newMachine(t, "sleep 1000 & echo child $!; read line", nil)
	started := m.mustStart("run")
	m.awaitInFile("console.log", "\n")
	var child int
	if _, err := fmt.Sscanf(m.read("console.log"), "child %d", &child); err != nil {
		t.Fatal(err)
	}
	m.send("go\n")
	m.wantStatus(started, 0)
	m.await("the child's end", func() bool { return syscall.Kill(child, 0) == syscall.ESRCH || isZombie(child) })
}

// isZombie is for containers whose first process reaps nobody.
func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") Z ")
}

func TestVMThatNobodyHearsOfIsEnded(t *testing.T) {
	m := newMachine(t, "sleep 600", nil)
	out, in, err := os.Pipe()
	m.must(err)
	m.must(out.Close()) // as if the starter had been killed
	cmd := exec.Command("/proc/self/exe", "run")
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.dir, in, os.Stderr
	m.must(cmd.Start())
	m.must(in.Close())
	m.must(cmd.Wait())
	if exit := m.exit(); exit.Signal != "SIGKILL" {
		t.Errorf("exit.json is %+v", exit)
	}
	m.wantFiles(leftAfterEnd...)
}

func TestTermOfTheShimIsNotTheVMsEnd(t *testing.T) {
	m := newMachine(t, "read line", nil)
	started := m.mustStart("run")
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		m.must(started.Process.Signal(signal))
	}
	m.connect().wantEvent("status")
	m.send("go\n")
	m.wantStatus(started, 0)
}

func TestProgramHasExactlyWhatItIsGiven(t *testing.T) {
	vmm := settings{
		// The environment is first, to show that nothing is before or behind its only variable. (A shell would add its own.)
		"argv": []string{"cat", "/proc/self/environ", "/proc/self/status", "/proc/self/limits"},
		"env":  settings{"ONLY": "this"}, "maxFiles": 333, "maxProcesses": 4444,
	}
	want := []string{"NoNewPrivs:\t1\n"}
	if os.Getuid() == 0 {
		vmm["uid"], vmm["gid"], vmm["groups"] = 200003, 200004, []int{200005}
		want = append(want, "Uid:\t200003\t200003\t200003\t200003\n", "Gid:\t200004\t200004\t200004\t200004\n", "Groups:\t200005 \n",
			"CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n")
	}
	m := newMachine(t, "", settings{"vmm": vmm})
	m.wantStatus(m.mustStart("run"), 0)
	got := m.read("console.log")
	if !strings.HasPrefix(got, "ONLY=this\x00Name:") {
		t.Errorf("the environment is %.200q", got)
	}
	for _, text := range want {
		if !strings.Contains(got, text) {
			t.Errorf("no %q in\n%s", text, got)
		}
	}
	fields := strings.Join(strings.Fields(got), " ")
	for _, text := range []string{"Max open files 333 333 files", "Max core file size 0 0 bytes", "Max processes 4444 4444 processes"} {
		if !strings.Contains(fields, text) {
			t.Errorf("no %q in\n%s", text, got)
		}
	}
}

func TestProgramHasTheDescriptorsOfFilesAndNoOthers(t *testing.T) {
	m := newMachine(t, "umask; read line", settings{"files": []settings{{"listen": "qmp.sock"}, {"open": "/dev/null"}}})
	started := m.mustStart("run")
	// By now the loader has closed the libraries of the shell.
	m.awaitInFile("console.log", "0077\n")
	descriptors := fmt.Sprintf("/proc/%d/fd/", started.reply.VMM.Pid)
	want := []string{m.path("console.in"), m.path("console.out"), m.path("vmm.err"), "socket:", "/dev/null"}
	for fd, text := range want {
		if target, err := os.Readlink(fmt.Sprint(descriptors, fd)); err != nil || !strings.HasPrefix(target, text) {
			t.Errorf("descriptor %d is %s (%v), want %s", fd, target, err, text)
		}
	}
	if open, err := os.ReadDir(descriptors); err != nil || len(open) != len(want) {
		t.Errorf("it has %v (%v), want %d", open, err, len(want))
	}
	info, err := os.Stat(m.path("qmp.sock"))
	m.must(err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("qmp.sock has mode %v", info.Mode())
	}
	m.send("go\n")
	m.wantStatus(started, 0)
	m.wantFiles(leftAfterEnd...)
}

func TestProgramMayOnlyReadWhatIsToBeRead(t *testing.T) {
	m := newMachine(t, "cat <&3; echo more >&3 || echo refused", settings{
		"files": []settings{{"read": "state/devices"}}, "removeFolders": []string{"state"},
	})
	m.must(os.Mkdir(m.path("state"), 0o700))
	m.write("state/devices", "the devices")
	m.wantStatus(m.mustStart("run"), 0)
	if said := m.read("console.log"); !strings.HasSuffix(said, "the devicesrefused\n") {
		t.Errorf("the program said %q", said)
	}
	m.wantFiles(leftAfterEnd...)
}

func TestFailedExecLeavesNothing(t *testing.T) {
	m := newMachine(t, "", settings{"vmm": settings{"argv": []string{"/nowhere/qemu"}}, "files": []settings{{"listen": "qmp.sock"}}})
	reply := m.mustFail("run", "vmm-start-failed")
	if !strings.Contains(reply.Message, "/nowhere/qemu") || !strings.Contains(reply.Message, "no such file") {
		t.Errorf("the message is %q", reply.Message)
	}
	m.wantFiles("console.log", "shim.json", "shim.lock", "shim.log", "vmm.log")
}

func TestUnusableDescriptorLeavesNothing(t *testing.T) {
	m := newMachine(t, "", settings{"files": []settings{{"listen": "qmp.sock"}, {"open": "/nowhere/device"}}})
	if reply := m.mustFail("run", "shim-failed"); !strings.Contains(reply.Message, "/nowhere/device") {
		t.Errorf("the message is %q", reply.Message)
	}
	m.wantFiles("console.log", "shim.json", "shim.lock", "shim.log", "vmm.log")
}

func TestWrongConfigurationIsRefused(t *testing.T) {
	m := newMachine(t, "", settings{"unknown": 1})
	m.mustFail("run", "config-invalid")
	m.wantFiles("shim.json")
}

func TestSecondShimIsRefused(t *testing.T) {
	m := newMachine(t, "read line", nil)
	started := m.mustStart("run")
	m.mustFail("run", "already-running")
	m.mustFail("adopt", "already-running")
	m.kill(started)
	m.mustFail("run", "already-running")
	m.connectRefused()
	m.wantStatus(m.adoptAndEnd(), 0)
}
