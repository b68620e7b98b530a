package monitor

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bandsox.dev/guest/internal/shim/record"
)

const patience = 10 * time.Second

// vmm is the far end: a VMM's monitor that says what the test wants.
type vmm struct {
	t        *testing.T
	listener net.Listener
	conn     net.Conn
	reader   *bufio.Reader

	watch   *Watch
	changes chan record.Machine
	// standing is what was heard last: that the machine stops.
	standing atomic.Bool
	mu       sync.Mutex
	reports  []string
}

// watched starts a watch and takes its connection.
func watched(t *testing.T, now record.Machine) *vmm {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "events.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	v := &vmm{t: t, listener: listener, changes: make(chan record.Machine, 10000)}
	v.watch = Start(socket, now, Ears{
		Stops:   func() { v.standing.Store(true) },
		Runs:    func() { v.standing.Store(false) },
		Changed: func(now record.Machine) { v.changes <- now },
		Report: func(err error) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.reports = append(v.reports, err.Error())
		},
	})
	t.Cleanup(func() {
		_ = listener.Close()
		if v.conn != nil {
			_ = v.conn.Close()
		}
		v.watch.Finish()
	})
	return v
}

func (v *vmm) accept() {
	v.t.Helper()
	conn, err := v.listener.Accept()
	v.must(err)
	v.must(conn.SetDeadline(time.Now().Add(patience)))
	v.conn, v.reader = conn, bufio.NewReader(conn)
	v.say(`{"QMP": {"version": {}, "capabilities": ["oob"]}}`)
	v.wantCommand("qmp_capabilities")
	v.say(`{"return": {}, "id": 0}`)
}

func (v *vmm) say(lines ...string) {
	v.t.Helper()
	_, err := v.conn.Write([]byte(strings.Join(lines, "\r\n") + "\r\n"))
	v.must(err)
}

func (v *vmm) wantCommand(name string) (id uint64) {
	v.t.Helper()
	line, err := v.reader.ReadBytes('\n')
	v.must(err)
	var command struct {
		Execute string
		ID      uint64
	}
	v.must(json.Unmarshal(line, &command))
	if command.Execute != name {
		v.t.Fatalf("got %s, want %s", line, name)
	}
	return command.ID
}

func (v *vmm) answer(status string) {
	v.t.Helper()
	id := v.wantCommand("query-status")
	v.say(fmt.Sprintf(`{"return": {"status": %q, "running": false, "singlestep": false}, "id": %d}`, status, id))
}

func (v *vmm) wantChange(status, reason string) {
	v.t.Helper()
	select {
	case now := <-v.changes:
		if now.Status != status || now.Reason != reason || now.Since == "" {
			v.t.Fatalf("got %+v, want %s %q", now, status, reason)
		}
	case <-time.After(patience):
		v.t.Fatalf("no change to %s", status)
	}
}

func (v *vmm) wantNoChange() {
	v.t.Helper()
	select {
	case now := <-v.changes:
		v.t.Fatalf("got %+v, want nothing", now)
	default:
	}
}

func (v *vmm) wantReport(parts ...string) {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.reports) != len(parts) {
		v.t.Fatalf("reported is %q, want %q", v.reports, parts)
	}
	for i, part := range parts {
		if !strings.Contains(v.reports[i], part) {
			v.t.Errorf("report %d is %q, want %q", i, v.reports[i], part)
		}
	}
}

func (v *vmm) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

var starting = record.Machine{Status: record.MachineStarting, Since: "before"}

const noSpace = `{"event": "BLOCK_IO_ERROR", "data": {"device": "overlay", "node-name": "#block2", "operation": "write",` +
	` "action": "stop", "nospace": true, "reason": "No space left on device"}}`

func TestMachineIsAskedAtFirstAndAfterEachEvent(t *testing.T) {
	v := watched(t, starting)
	v.accept()
	v.answer("running")
	v.wantChange("running", "")
	v.say(noSpace, `{"event": "STOP", "timestamp": {"seconds": 1}}`)
	id := v.wantCommand("query-status")
	if !v.standing.Load() {
		t.Error("that the machine stops is said only after it was asked")
	}
	v.say(fmt.Sprintf(`{"return": {"status": "io-error"}, "id": %d}`, id))
	v.wantChange("io-error", "write on disk overlay failed: no space left on the host")
	v.say(`{"event": "RESUME"}`)
	v.answer("running")
	v.wantChange("running", "")
	if v.standing.Load() {
		t.Error("it is not said that the machine runs")
	}
	v.say(`{"event": "STOP"}`)
	v.answer("paused")
	v.wantChange("paused", "") // the earlier failure is not the reason of this
	v.say(`{"event": "GUEST_PANICKED", "data": {"action": "pause"}}`)
	v.answer("guest-panicked")
	v.wantChange("guest-panicked", "")
	v.wantReport()
}

func TestAMachineThatLoadsAStateIsAskedUntilItHas(t *testing.T) {
	v := watched(t, starting)
	v.accept()
	v.answer("inmigrate")
	v.answer("inmigrate")
	v.wantNoChange()
	// Half a line comes before the patience with it ends.
	id := v.wantCommand("query-status")
	answer := fmt.Sprintf(`{"return": {"status": "paused"}, "id": %d}`, id)
	_, err := v.conn.Write([]byte(answer[:20]))
	v.must(err)
	time.Sleep(3 * loadingPoll)
	v.say(answer[20:])
	v.wantChange("paused", "")
	// From now on it tells by itself.
	v.must(v.conn.SetReadDeadline(time.Now().Add(5 * loadingPoll)))
	if line, err := v.reader.ReadBytes('\n'); err == nil {
		t.Errorf("it is asked on: %s", line)
	}
	v.must(v.conn.SetReadDeadline(time.Now().Add(patience)))
	v.say(`{"event": "RESUME"}`)
	v.answer("running")
	v.wantChange("running", "")
	v.wantReport()
}

func TestQuestionsDoNotPileUp(t *testing.T) {
	v := watched(t, starting)
	v.accept()
	v.say(`{"event": "STOP"}`, `{"event": "RESUME"}`, `{"event": "STOP"}`)
	v.answer("prelaunch")
	v.answer("paused")
	v.wantChange("paused", "")
	v.say(`{"return": {"status": "running"}, "id": 1}`, `{"return": {"status": "running"}}`) // answers to nothing
	v.say(`{"event": "RESUME"}`)
	v.answer("running")
	v.wantChange("running", "")
	v.wantNoChange()
}

func TestWhatIsKnownAlreadyIsNoChange(t *testing.T) {
	known := record.Machine{Status: record.MachineIOError, Since: "then", Reason: "write on disk overlay failed: no space left on the host"}
	v := watched(t, known)
	v.accept()
	v.answer("io-error")
	v.say(`{"event": "RESUME"}`)
	v.answer("running")
	v.wantChange("running", "")
	v.wantNoChange()
}

func TestCauseOfTheEndIsTaken(t *testing.T) {
	v := watched(t, starting)
	v.accept()
	v.answer("running")
	v.wantChange("running", "")
	v.say(`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`)
	v.must(v.conn.Close())
	v.must(v.listener.Close())
	if cause := v.watch.Finish(); cause != "guest-reset" {
		t.Errorf("the cause is %q", cause)
	}
	if v.watch.Finish() != "guest-reset" {
		t.Error("the second time it is another")
	}
}

func TestFinishDoesNotWaitForAVMMThatHoldsOn(t *testing.T) {
	v := watched(t, starting)
	v.accept()
	began := time.Now()
	v.watch.Finish()
	if took := time.Since(began); took > 5*farewellLimit {
		t.Errorf("it took %v", took)
	}
}

func TestConnectionThatEndsIsMadeAnew(t *testing.T) {
	v := watched(t, starting)
	v.accept()
	v.answer("running")
	v.wantChange("running", "")
	v.must(v.conn.Close())
	v.accept()
	v.answer("paused")
	v.wantChange("paused", "")
}

func TestNonsenseIsReportedAndLeftOut(t *testing.T) {
	v := watched(t, starting)
	v.accept()
	v.say(
		"not JSON",
		`{"event": 7}`,
		`{"event": "BLOCK_IO_ERROR", "data": 3}`,
		`{"event": "SHUTDOWN", "data": {"reason": "\u001b[2J"}}`,
		strings.Repeat("x", 3*maxLineBytes),
		`{"error": {"class": "GenericError", "desc": "no"}}`,
		`{"event": "RTC_CHANGE", "data": {"offset": 1}}`,
		`[]`,
	)
	v.answer("on fire")
	v.say(`{"event": "STOP"}`)
	v.answer("paused")
	v.wantChange("paused", "")
	v.wantReport("invalid character", "cannot unmarshal number", "BLOCK_IO_ERROR", `"\x1b[2J"`, "more than 8192 bytes", `"no"`, "cannot unmarshal array",
		`"on fire"`)
	if v.watch.isStopping() || v.watch.shutdown != "" {
		t.Error("an unknown cause was taken")
	}
}

func TestWordsOfTheVMMAreMadePlain(t *testing.T) {
	v := watched(t, starting)
	v.accept()
	data, err := json.Marshal(map[string]any{"device": strings.Repeat("\"", 500), "operation": "\x1b]0;", "action": "stop", "reason": "é<&>\\\n"})
	v.must(err)
	v.say(`{"event": "BLOCK_IO_ERROR", "data": `+string(data)+`}`, `{"event": "STOP"}`)
	v.answer("io-error")
	now := <-v.changes
	if want := "?]0; on disk " + strings.Repeat("?", 40) + " failed: ???????"; now.Reason != want {
		t.Errorf("the reason is %q, want %q", now.Reason, want)
	}
	if len(now.Reason) > record.MaxReasonBytes {
		t.Errorf("it has %d bytes", len(now.Reason))
	}
}

func TestFloodIsSlowedDownAndReportedInBounds(t *testing.T) {
	v := watched(t, starting)
	v.accept()
	// flood writes for a second, and counts.
	flood := func() (pairs int) {
		v.must(v.conn.SetDeadline(time.Now().Add(time.Second)))
		for {
			if _, err := v.conn.Write([]byte("{\"event\": \"STOP\"}\nnonsense\n")); err != nil {
				return pairs
			}
			pairs++
		}
	}
	flood() // fills the socket
	if pairs := flood(); pairs > 1000 {
		t.Errorf("%d pairs of lines are taken in a second", pairs)
	}
	v.mu.Lock()
	reported := len(v.reports)
	v.mu.Unlock()
	if reported > maxReports {
		t.Errorf("%d reports", reported)
	}
	began := time.Now()
	v.watch.Finish()
	if took := time.Since(began); took > 5*farewellLimit {
		t.Errorf("the end took %v", took)
	}
}

func TestPaceLetsABurstThroughAndThenASteadyRate(t *testing.T) {
	var p pace
	never := make(chan struct{})
	began := time.Now()
	for i := 0; i < burstLines; i++ {
		p.wait(never)
	}
	burst := time.Since(began)
	const more = 20
	for i := 0; i < more; i++ {
		p.wait(never)
	}
	if steady := time.Since(began) - burst; steady < (more-2)*lineInterval || burst > steady+time.Second {
		t.Errorf("the burst took %v, %d more lines %v", burst, more, steady)
	}
	stopped := make(chan struct{})
	close(stopped)
	began = time.Now()
	for i := 0; i < 1000; i++ {
		p.wait(stopped)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("1000 lines took %v when nobody wants to wait", took)
	}
}

func TestSocketThatIsNotThereIsTriedAgain(t *testing.T) {
	reported := make(chan error, 100)
	watch := Start(filepath.Join(t.TempDir(), "none"), starting, Ears{Report: func(err error) { reported <- err }})
	if err := <-reported; !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
	if watch.Finish() != "" {
		t.Error("it has a cause")
	}
}
