package shim_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"bandsox.dev/guest/internal/shim/record"
)

// vmmWithMonitor is a VMM whose machine does what its console is told: a line is a state and an event, or "end" and a cause. It may
// have a serial port too.
func vmmWithMonitor(hasPort bool) int {
	if hasPort {
		go func() { fmt.Fprintln(os.Stderr, echoOverPort(4)) }()
	}
	listener, err := net.FileListener(os.NewFile(3, "monitor"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var mu sync.Mutex
	state := "running"
	var client net.Conn
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			client = conn
			mu.Unlock()
			fmt.Fprintln(conn, `{"QMP": {}}`)
			for requests := bufio.NewScanner(conn); requests.Scan(); {
				var request struct{ ID uint64 }
				if err := json.Unmarshal(requests.Bytes(), &request); err != nil {
					return
				}
				mu.Lock()
				fmt.Fprintf(conn, "{\"return\": {\"status\": %q}, \"id\": %d}\n", state, request.ID)
				mu.Unlock()
			}
		}
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		first, second, _ := strings.Cut(lines.Text(), " ")
		mu.Lock()
		if first == "end" {
			fmt.Fprintf(client, "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": %q}}\n", second)
			return 0
		}
		state = first
		if client != nil {
			fmt.Fprintf(client, "{\"event\": %q}\n", second)
		}
		mu.Unlock()
	}
	return 1
}

func newMachineWithMonitor(t *testing.T) *machine {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return newMachine(t, "", settings{
		"vmm":     settings{"argv": []string{program, "vmm-with-monitor"}, "maxFiles": 256},
		"files":   []settings{{"listen": "events.sock"}},
		"monitor": settings{"kind": "qmp", "socket": "events.sock"},
	})
}

func (m *machine) awaitStatus(status string) (now record.Machine) {
	m.t.Helper()
	m.await("machine "+status, func() bool {
		text, err := os.ReadFile(m.path("machine.json"))
		return err == nil && json.Unmarshal(text, &now) == nil && now.Status == status
	})
	return now
}

func TestWhatTheMachineDoesIsRecordedAndTold(t *testing.T) {
	m := newMachineWithMonitor(t)
	started := m.mustStart("run")
	m.awaitStatus("running")
	client := m.connect()
	if state := client.wantEvent("status")["machine"].(map[string]any); state["status"] != "running" || state["since"] == "" {
		t.Errorf("the machine is %v", state)
	}
	m.send("paused STOP\n")
	if event := client.wantEvent("machine"); event["status"] != "paused" {
		t.Errorf("the event is %v", event)
	}
	m.awaitStatus("paused")
	m.send("end guest-shutdown\n")
	if exited := client.wantEvent("exited"); exited["shutdown"] != "guest-shutdown" {
		t.Errorf("exited is %v", exited)
	}
	m.wantStatus(started, 0)
	if exit := m.exit(); exit.Shutdown != "guest-shutdown" || *exit.Code != 0 {
		t.Errorf("exit.json is %+v", exit)
	}
	m.wantFiles(leftAfterEnd...)
}

func TestAdoptFindsOutWhatTheMachineDoes(t *testing.T) {
	m := newMachineWithMonitor(t)
	m.kill(m.mustStart("run"))
	m.send("paused STOP\n")
	adopted := m.mustStart("adopt")
	paused := m.awaitStatus("paused")
	m.kill(adopted)
	time.Sleep(2 * time.Millisecond) // another time than the first
	adopted = m.mustStart("adopt")
	client := m.connect()
	if state := client.wantEvent("status")["machine"].(map[string]any); state["since"] != paused.Since {
		t.Errorf("it is %v, was %v", state, paused)
	}
	m.send("running RESUME\n")
	client.wantEvent("machine")
	m.send("end host-signal\n")
	client.wantEvent("exited")
	m.wantStatus(adopted, 0)
	m.wantFiles(leftAfterEnd...)
}

func TestControlGroupThatCannotBeMadeLeavesNothing(t *testing.T) {
	group := t.TempDir() + "/sbx_test"
	m := newMachine(t, "", settings{"cgroup": settings{"folder": group, "settings": settings{"cpu.max": "max"}}})
	if reply := m.mustFail("run", "shim-failed"); !strings.Contains(reply.Message, "cpu.max") {
		t.Errorf("the message is %q", reply.Message)
	}
	if _, err := os.Stat(group); !os.IsNotExist(err) {
		t.Errorf("the folder: %v", err)
	}
	m.wantFiles("shim.json", "shim.lock", "shim.log")
}

func TestProgramThatCannotEnterItsControlGroupIsNotStarted(t *testing.T) {
	group := t.TempDir() + "/sbx_test"
	m := newMachine(t, "echo started", settings{"cgroup": settings{"folder": group}})
	if reply := m.mustFail("run", "vmm-start-failed"); !strings.Contains(reply.Message, "control group") {
		t.Errorf("the message is %q", reply.Message)
	}
	if m.read("console.log") != "" {
		t.Error("it was started")
	}
	if _, err := os.Stat(group); !os.IsNotExist(err) {
		t.Errorf("the folder: %v", err)
	}
}
