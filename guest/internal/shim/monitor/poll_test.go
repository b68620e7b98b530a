package monitor

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bandsox.dev/guest/internal/shim/record"
)

// api answers each request with the next of its answers, and the last one for ever.
type api struct {
	mu      sync.Mutex
	answers []string
}

func (a *api) set(answer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers = []string{answer}
}

func serveAPI(t *testing.T, answers ...string) (*api, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	served := &api{answers: answers}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			request := make([]byte, 4096)
			n, _ := conn.Read(request)
			if !strings.HasPrefix(string(request[:n]), "GET / HTTP/1.1\r\n") {
				t.Errorf("asked %q", request[:n])
			}
			served.mu.Lock()
			answer := served.answers[0]
			if len(served.answers) > 1 {
				served.answers = served.answers[1:]
			}
			served.mu.Unlock()
			_, _ = conn.Write([]byte(answer))
			_ = conn.Close()
		}
	}()
	return served, path
}

func inState(state string) string {
	body := fmt.Sprintf(`{"id":"vm","state":%q,"vmm_version":"1.17.0","app_name":"Firecracker"}`, state)
	return fmt.Sprintf("HTTP/1.1 200 \r\nServer: Firecracker API\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
}

func startPoll(t *testing.T, path string) (poll *Poll, heard chan string) {
	heard = make(chan string, 100)
	poll = StartPoll(path, record.Machine{Status: record.MachineStarting}, Ears{
		Stops: func() { heard <- "stops" }, Runs: func() { heard <- "runs" },
		Changed: func(now record.Machine) { heard <- now.Status },
		Report:  func(err error) { t.Log(err) },
	})
	t.Cleanup(func() { poll.Finish() })
	return poll, heard
}

func expect(t *testing.T, heard chan string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		select {
		case got := <-heard:
			if got != want {
				t.Fatalf("heard %q, not %q", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("did not hear %q", want)
		}
	}
}

func TestPollHearsThatTheMachineRunsAndLooksWhenAsked(t *testing.T) {
	api, path := serveAPI(t, inState("Not started"), inState("Not started"), inState("Running"))
	poll, heard := startPoll(t, path)
	expect(t, heard, "runs", record.MachineRunning)
	api.set(inState("Paused"))
	if err := poll.Look(); err != nil {
		t.Fatal(err)
	}
	expect(t, heard, "stops", record.MachinePaused)
	api.set(inState("Running"))
	if err := poll.Look(); err != nil {
		t.Fatal(err)
	}
	expect(t, heard, "runs", record.MachineRunning)
	poll.Finish()
	if err := poll.Look(); err != errEnded {
		t.Fatalf("after the end: %v", err)
	}
}

func TestPollOfAnAdoptedMachineAsksAgainSoonUntilItHasAnAnswer(t *testing.T) {
	_, path := serveAPI(t, "", "", inState("Running"))
	heard := make(chan string, 10)
	began := time.Now()
	poll := StartPoll(path, record.Machine{Status: record.MachineRunning}, Ears{
		Stops: func() { heard <- "stops" }, Runs: func() { heard <- "runs" },
		Changed: func(record.Machine) {}, Report: func(err error) { t.Log(err) },
	})
	t.Cleanup(func() { poll.Finish() })
	expect(t, heard, "runs")
	if took := time.Since(began); took > lastLook/2 {
		t.Errorf("it took %v, with the links shut", took)
	}
}

func TestPollBelievesNothingBeyondItsBounds(t *testing.T) {
	for name, answer := range map[string]string{
		"no HTTP":                 "what?\r\n\r\n",
		"a refusal":               "HTTP/1.1 400 \r\nContent-Length: 2\r\n\r\n{}",
		"no length":               "HTTP/1.1 200 \r\n\r\n{}",
		"a negative length":       "HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n{}",
		"an enormous length":      "HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n{}",
		"a cut body":              "HTTP/1.1 200 \r\nContent-Length: 200\r\n\r\n{}",
		"headers without end":     "HTTP/1.1 200 \r\n" + strings.Repeat("X: y\r\n", maxAnswerBytes),
		"a line without end":      strings.Repeat("x", 2*maxAnswerBytes),
		"no JSON":                 "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n]]",
		"a state that we lack":    inState("Dancing"),
		"nothing":                 "",
		"a state of another kind": "HTTP/1.1 200 \r\nContent-Length: 11\r\n\r\n{\"state\":1}",
	} {
		api, path := serveAPI(t, inState("Running"))
		poll, heard := startPoll(t, path)
		expect(t, heard, "runs", record.MachineRunning)
		api.set(answer)
		if err := poll.Look(); err == nil {
			t.Errorf("%s: no error", name)
		}
		select {
		case got := <-heard:
			t.Errorf("%s: heard %q", name, got)
		default:
		}
		poll.Finish()
	}
}
