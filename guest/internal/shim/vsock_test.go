package shim_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/vsock"
)

func daemonThat(script string) settings {
	return settings{"kind": "daemon", "argv": []string{"/bin/sh", "-c", script}, "waitFor": "vsock.ready",
		"socket": "vsock.sock", "daemonSocket": "daemon.sock"}
}

func TestDaemonsDeathIsToldAndLeavesTheVM(t *testing.T) {
	m := newMachine(t, "read line", settings{"vsock": daemonThat("echo hello >&2; touch vsock.ready; exec sleep 1000")})
	started := m.mustStart("run")
	client := m.connect()
	if status := client.wantEvent("status"); status["vsock"] != "running" {
		t.Errorf("status is %v", status)
	}
	m.must(syscall.Kill(m.run().Vsock.Pid, syscall.SIGKILL))
	client.wantEvent("vsock-died")
	if m.run().Vsock != nil {
		t.Errorf("run.json still has %v", m.run().Vsock)
	}
	if status := m.connect().wantEvent("status"); status["vsock"] != "dead" {
		t.Errorf("a later client's status is %v", status)
	}
	m.send("go\n")
	client.wantEvent("exited")
	m.wantStatus(started, 0)
	if m.read("vsock.log") != "hello\n" {
		t.Errorf("vsock.log is %q", m.read("vsock.log"))
	}
	m.wantFiles(append([]string{"vsock.log"}, leftAfterEnd...)...)
}

func TestDaemonEndsWithTheVMMEvenIfItWouldNot(t *testing.T) {
	m := newMachine(t, "read line", settings{"vsock": daemonThat("trap '' TERM; touch vsock.ready; while :; do sleep 1000; done")})
	started := m.mustStart("run")
	daemon := *m.run().Vsock
	m.send("go\n")
	m.wantStatus(started, 0)
	m.wantGone("daemon", daemon)
	m.wantFiles(append([]string{"vsock.log"}, leftAfterEnd...)...)
}

func TestDaemonThatDoesNotStartIsToldWithItsOwnWords(t *testing.T) {
	m := newMachine(t, "read line", settings{"vsock": daemonThat("echo no way >&2; exit 1")})
	if reply := m.mustFail("run", "vsock-start-failed"); !strings.Contains(reply.Message, "no way") {
		t.Errorf("the message is %q", reply.Message)
	}
	m.wantFiles("console.log", "shim.json", "shim.lock", "shim.log", "vmm.log", "vsock.log")
}

func TestFailedExecEndsTheDaemonToo(t *testing.T) {
	m := newMachine(t, "", settings{
		"vmm":   settings{"argv": []string{"/nowhere/qemu"}},
		"vsock": daemonThat("echo $$ >&2; touch vsock.ready; exec sleep 1000"),
	})
	m.mustFail("run", "vmm-start-failed")
	var daemon int
	if _, err := fmt.Sscan(m.read("vsock.log"), &daemon); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(daemon, 0); err != syscall.ESRCH {
		t.Errorf("the daemon %d: %v", daemon, err)
	}
	m.wantFiles("console.log", "shim.json", "shim.lock", "shim.log", "vmm.log", "vsock.log")
}

func TestKernelBridgeListensAndRefusesWithoutAWord(t *testing.T) {
	// Nobody has this address: on this host there is no such guest, or no vsock at all.
	m := newMachine(t, "read line", settings{"vsock": settings{"kind": "kernel", "cid": 4000000000, "socket": "vsock.sock"}})
	started := m.mustStart("run")
	if status := m.connect().wantEvent("status"); status["vsock"] != "kernel" {
		t.Errorf("status is %v", status)
	}
	conn, err := net.Dial("unix", m.path("vsock.sock"))
	m.must(err)
	defer conn.Close()
	m.must(conn.SetDeadline(time.Now().Add(patience)))
	_, err = conn.Write([]byte("CONNECT 9000\n"))
	m.must(err)
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
	m.send("go\n")
	m.wantStatus(started, 0)
	m.wantFiles(leftAfterEnd...)
}

func TestCIDBelongsToOneVMOfTheHost(t *testing.T) {
	const cid = 4000000001
	other, err := os.OpenFile(vsock.VhostDevice, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs the kernel's vsock backend: %v", err)
	}
	defer func() { _ = other.Close() }() // closed once more below
	m := newMachine(t, "read line", settings{
		"files": []settings{{"open": vsock.VhostDevice}},
		"vsock": settings{"kind": "kernel", "cid": cid, "socket": "vsock.sock"},
	})
	m.must(vsock.SetGuestCID(int(other.Fd()), cid))
	m.mustFail("run", "cid-in-use")
	m.wantFiles("console.log", "shim.json", "shim.lock", "shim.log", "vmm.log")

	m.must(other.Close())
	started := m.mustStart("run")
	other, err = os.OpenFile(vsock.VhostDevice, os.O_RDWR, 0)
	m.must(err)
	if err := vsock.SetGuestCID(int(other.Fd()), cid); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the running VM's CID: %v, want that it is in use", err)
	}
	m.send("go\n")
	m.wantStatus(started, 0)
	m.must(vsock.SetGuestCID(int(other.Fd()), cid))
	m.wantFiles(leftAfterEnd...)
}

func TestVsockIsShutWhileTheMachineHasNoDeviceForItAlsoForTheNextShim(t *testing.T) {
	// A daemon that answers whatever comes.
	daemon := daemonThat("exec " + testProgram(t) + " daemon-that-agrees")
	daemon["shut"], daemon["waitFor"] = true, "daemon.sock"
	m := newMachine(t, "read line", settings{"vsock": daemon})
	started := m.mustStart("run")
	reaches := func() bool {
		conn, err := net.Dial("unix", m.path("vsock.sock"))
		m.must(err)
		defer conn.Close()
		m.must(conn.SetDeadline(time.Now().Add(patience)))
		_, _ = conn.Write([]byte("CONNECT 9000\n")) // refused, it may be closed already
		_, err = conn.Read(make([]byte, 1))
		return err == nil
	}
	if reaches() {
		t.Error("a machine that begins without has vsock")
	}
	client := m.connect()
	client.wantEvent("status")
	client.say(`{"op":"open-vsock"}` + "\n")
	client.wantEvent("vsock-opened")
	if !reaches() {
		t.Error("it has no vsock after all")
	}
	client.say(`{"op":"shut-vsock"}` + "\n")
	client.wantEvent("vsock-shut")
	if reaches() || !m.run().VsockShut {
		t.Errorf("vsock is not shut: %+v", m.run())
	}
	m.kill(started)
	m.mustStart("adopt")
	if reaches() {
		t.Error("the next shim has opened it")
	}
	client = m.connect()
	client.wantEvent("status")
	client.say(`{"op":"open-vsock"}` + "\n")
	client.wantEvent("vsock-opened")
	if !reaches() || m.run().VsockShut {
		t.Error("it does not open any more")
	}
	m.send("go\n")
	client.wantEvent("exited")
}

func TestVsockIsNotToBeShutWhereThereIsNoDaemon(t *testing.T) {
	m := newMachine(t, "read line", settings{})
	m.mustStart("run")
	client := m.connect()
	client.wantEvent("status")
	client.say(`{"op":"shut-vsock"}` + "\n")
	if event := client.wantEvent("error"); event["code"] != "vsock-failed" {
		t.Errorf("the answer is %v", event)
	}
	m.send("go\n")
	client.wantEvent("exited")
}

// daemonThatAgrees connects every host, to nothing.
func daemonThatAgrees() int {
	listener, err := net.Listen("unix", "daemon.sock")
	for err == nil {
		var conn net.Conn
		if conn, err = listener.Accept(); err == nil {
			_, _ = conn.Write([]byte("OK 1\n")) // its host sees how far that went
		}
	}
	return 1
}
