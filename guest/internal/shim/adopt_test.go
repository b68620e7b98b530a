package shim_test

import (
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func (m *machine) connectRefused() {
	m.t.Helper()
	if conn, err := net.Dial("unix", m.path("shim.sock")); err == nil {
		_ = conn.Close()
		m.t.Error("a killed shim's socket still answers")
	}
}

// adoptAndEnd adopts a VMM that waits for a line.
func (m *machine) adoptAndEnd() *shimProcess {
	m.t.Helper()
	adopted := m.mustStart("adopt")
	m.send("go\n")
	return adopted
}

func TestKilledShimIsNotTheVMsEndAndAnotherTakesOver(t *testing.T) {
	// 10,000 lines are 48,894 bytes, which the pipe holds.
	m := newMachine(t, "read line; seq 1 10000; echo printed >&2; touch printed; read line", nil)
	started := m.mustStart("run")
	m.kill(started)
	m.send("print\n")
	vmm := started.reply.VMM
	m.awaitInFile("printed", "")
	if m.read("console.log") != "" {
		t.Fatalf("somebody has drained the console: %.50q", m.read("console.log"))
	}
	adopted := m.mustStart("adopt")
	if adopted.reply.VMM != vmm || m.run().VMM != vmm || m.run().Shim.Pid != adopted.Process.Pid {
		t.Errorf("adopted %+v with %+v on record, want %+v", adopted.reply, m.run(), vmm)
	}
	client := m.connect()
	client.wantEvent("status")
	client.say(`{"op":"signal","signal":"SIGTERM"}` + "\n")
	client.wantEvent("signalled")
	if exited := client.wantEvent("exited"); exited["unknown"] != true {
		t.Errorf("exited is %v", exited)
	}
	m.wantStatus(adopted, 0)
	if exit := m.exit(); !exit.Unknown || exit.Code != nil || exit.Signal != "" || exit.ShimKilled {
		t.Errorf("exit.json is %+v", exit)
	}
	if log := m.read("console.log"); len(log) != 48894 || !strings.HasSuffix(log, "\n10000\n") || m.read("vmm.log") != "printed\n" {
		t.Errorf("the console's log has %d bytes, vmm.log %q", len(log), m.read("vmm.log"))
	}
	m.wantFiles(append([]string{"printed"}, leftAfterEnd...)...)
}

func TestAdoptClearsUpAfterAVMMThatIsGone(t *testing.T) {
	m := newMachine(t, "read line", settings{"vsock": daemonThat("touch vsock.ready; exec sleep 1000")})
	started := m.mustStart("run")
	run := m.run()
	m.kill(started)
	m.must(syscall.Kill(run.VMM.Pid, syscall.SIGKILL))
	m.await("the VMM's end", func() bool { alive, err := run.VMM.IsAlive(); return err == nil && !alive })
	m.mustFail("adopt", "vmm-gone")
	if exit := m.exit(); !exit.Unknown || !exit.ShimKilled {
		t.Errorf("exit.json is %+v", exit)
	}
	m.wantGone("daemon", *run.Vsock)
	m.wantFiles(append([]string{"vsock.log"}, leftAfterEnd...)...)
}

func TestShimKilledWhileStartingLeavesNothingOffTheRecord(t *testing.T) {
	m := newMachine(t, "read line", settings{"vsock": daemonThat("echo up >&2; exec sleep 1000")})
	starting := exec.Command("/proc/self/exe", "run")
	starting.Dir = m.dir
	m.must(starting.Start())
	m.awaitInFile("vsock.log", "up")
	run := m.run()
	m.must(starting.Process.Kill())
	_ = starting.Wait() // says that it was killed
	// The VMM has not been let go, so it ends by itself; the daemon was.
	m.await("the launcher's end", func() bool { alive, err := run.VMM.IsAlive(); return err == nil && !alive })
	m.mustFail("adopt", "vmm-gone")
	m.wantGone("daemon", *run.Vsock)
	m.wantFiles(append([]string{"vsock.log"}, leftAfterEnd...)...)
}

func TestAdoptKeepsTheRecordOfAnEnd(t *testing.T) {
	m := newMachine(t, "exit 3", nil)
	m.wantStatus(m.mustStart("run"), 0)
	before := m.read("exit.json")
	m.mustFail("adopt", "vmm-gone")
	if m.read("exit.json") != before {
		t.Errorf("exit.json was %s, is %s", before, m.read("exit.json"))
	}
}

func TestAdoptWithoutARecordFindsNothing(t *testing.T) {
	newMachine(t, "", nil).mustFail("adopt", "vmm-gone")
}

func TestAdoptKeepsALivingDaemon(t *testing.T) {
	m := newMachine(t, "read line", settings{"vsock": daemonThat("touch vsock.ready; exec sleep 1000")})
	m.kill(m.mustStart("run"))
	daemon := *m.run().Vsock
	adopted := m.mustStart("adopt")
	if now := m.run().Vsock; now == nil || *now != daemon {
		t.Fatalf("the daemon was %v, is %v", daemon, now)
	}
	client := m.connect()
	if status := client.wantEvent("status"); status["vsock"] != "running" {
		t.Errorf("status is %v", status)
	}
	m.must(syscall.Kill(daemon.Pid, syscall.SIGKILL))
	client.wantEvent("vsock-died")
	m.send("go\n")
	client.wantEvent("exited")
	m.wantStatus(adopted, 0)
}
