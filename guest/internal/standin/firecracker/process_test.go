package firecracker_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestTheVersionIsPrinted(t *testing.T) {
	for want, words := range map[string][]string{"1.17.0": nil, "1.16.1": {"--stand-in-version", "1.16.1"}} {
		out, err := exec.Command("/proc/self/exe", append(append([]string{asVMM}, words...), "--version")...).Output()
		if first, _, _ := strings.Cut(string(out), "\n"); err != nil || first != "Firecracker v"+want {
			t.Errorf("%v: %q, %v", words, out, err)
		}
	}
}

func TestWrongArgumentsEndTheProcess(t *testing.T) {
	for line, want := range map[string]struct {
		status int
		words  string
	}{
		"--nope":                          {153, "Found argument 'nope' which wasn't expected"},
		"--no-api":                        {153, "Argument 'config-file' required, but not found."},
		"--level nope --api-sock a":       {152, "Invalid value for logger level: nope."},
		"--id a_b":                        {-6, "Invalid instance ID: Invalid char (_) at position 1"},
		"--config-file nope.json":         {-6, "Unable to open or read from the configuration file"},
		"--stand-in-fault nope":           {153, `there is no fault "nope"`},
		"--stand-in-fault vsock-dies=x":   {153, "the fault vsock-dies needs milliseconds"},
		"--api-sock nope/api.sock":        {1, "No such file or directory (os error 2)"},
		"--log-path nope/log":             {1, "Could not initialize logger"},
		"--metrics-path nope/m":           {1, "Could not initialize metrics"},
		"--stand-in-fault crash-at=start": {148, "crashed at start, as it was told to"},
	} {
		v := prepare(t).run(strings.Fields(line)...)
		v.wantEnd(want.status)
		if text := v.read("out.log") + v.read("err.log"); !strings.Contains(text, want.words) {
			t.Errorf("%s: it says %s\nwant %s", line, text, want.words)
		}
	}
}

func TestAnAPISocketThatIsThereIsNotReplaced(t *testing.T) {
	v := prepare(t)
	v.write("api.sock", "")
	v.run("--api-sock", "api.sock").wantEnd(1)
	if want := "Failed to open the API socket at: api.sock. Check that it is not already used."; !strings.Contains(v.read("out.log"), want) {
		t.Errorf("it says %s", v.read("out.log"))
	}
}

func TestMetricsAreWrittenWhenAskedForAndAtTheEnd(t *testing.T) {
	v := start(t)
	v.wantDone("PUT", "/metrics", object{"metrics_path": "metrics"})
	v.wantFault("PUT", "/metrics", object{"metrics_path": "metrics"}, "Reinitialization of metrics not allowed.")
	v.configure(bootArguments)
	v.wantDone("PUT", "/actions", action("InstanceStart"))
	v.awaitConsole("ready on vsock port 9000")
	v.wantDone("PUT", "/actions", action("FlushMetrics"))
	v.wantDone("PUT", "/actions", action("SendCtrlAltDel"))
	v.wantEnd(0)
	lines := strings.Split(strings.TrimSpace(v.read("metrics")), "\n")
	if len(lines) != 2 {
		t.Fatalf("there are %d lines", len(lines))
	}
	var first struct {
		Timestamp int64             `json:"utc_timestamp_ms"`
		Puts      map[string]uint64 `json:"put_api_requests"`
	}
	must(t, json.Unmarshal([]byte(lines[0]), &first))
	if first.Timestamp == 0 || first.Puts["metrics_count"] != 2 || first.Puts["metrics_fails"] != 1 || first.Puts["drive_count"] != 1 {
		t.Errorf("the first line is %s", lines[0])
	}
}

func TestTheLogGoesWhereItIsToldTo(t *testing.T) {
	v := start(t)
	v.wantDone("PUT", "/logger", object{"log_path": "log", "level": "Info", "show_level": true})
	v.wantFault("PUT", "/nope", object{}, "Invalid request")
	if text := v.read("log"); !strings.Contains(text, "[anonymous-instance:main:ERROR] Received Error. Status code: 400") {
		t.Errorf("the log is %s", text)
	}
	if text := v.read("out.log"); strings.Contains(text, "Received Error") {
		t.Errorf("stdout has it: %s", text)
	}
	quiet := start(t, "--log-path", "log", "--level", "Error")
	if _, answer := quiet.call("GET", "/version", nil); answer == nil || quiet.read("log") != "" {
		t.Errorf("at level Error the log is %s", quiet.read("log"))
	}
}

func TestACrashIsAtItsStep(t *testing.T) {
	for _, step := range []string{"PUT /vsock", "InstanceStart", "PUT /snapshot/load"} {
		v := start(t, "--stand-in-fault", "crash-at="+step)
		method, path, body := "PUT", "/actions", any(action("InstanceStart"))
		if strings.Contains(step, " ") {
			_, path, _ = strings.Cut(step, " ")
			body = object{}
		}
		v.wantState("Not started")
		if status, answer := v.call(method, path, body); status != 0 {
			t.Errorf("%s is answered: %d %v", step, status, answer)
		}
		v.wantEnd(148)
		if !strings.Contains(v.read("err.log"), "crashed at "+step) {
			t.Errorf("it says %s", v.read("err.log"))
		}
	}
}

func TestWhatHangsIsNotAnswered(t *testing.T) {
	v := start(t, "--stand-in-fault", "hang-at=PUT /vsock")
	v.wantState("Not started")
	_, err := v.api.Write([]byte("PUT /vsock HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"))
	must(t, err)
	must(t, v.api.SetReadDeadline(time.Now().Add(moment)))
	if n, err := v.api.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Error("it is answered")
	}
	early := prepare(t).run("--stand-in-fault", "hang-at=start", "--api-sock", "api.sock")
	time.Sleep(moment)
	if _, err := os.Stat(early.path("api.sock")); err == nil {
		t.Error("there is an API socket")
	}
	must(t, early.process.Process.Kill())
	early.wantEnd(-9) // and had not ended before
}

func TestASlowAPIIsSlow(t *testing.T) {
	v := start(t, "--stand-in-fault", "api-slow=50")
	began := time.Now()
	v.wantState("Not started")
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}

func TestFaultsOfTheGuest(t *testing.T) {
	faulty := func(fault string) *vmm {
		v := start(t, "--stand-in-fault", fault)
		v.configure(bootArguments)
		v.wantDone("PUT", "/actions", action("InstanceStart"))
		return v
	}
	panics := faulty("guest-panics")
	panics.wantEnd(0)
	panics.awaitConsole("Kernel panic - not syncing")

	silent := faulty("guest-silent")
	silent.await("the guest takes a connection", func() bool {
		conn := silent.dial()
		if conn == nil {
			return false
		}
		must(t, conn.SetReadDeadline(time.Now().Add(moment)))
		n, err := conn.Read(make([]byte, 1))
		return n == 0 && os.IsTimeout(err)
	})
	if strings.Contains(silent.read("out.log"), "ready on") {
		t.Error("it says that it is ready")
	}
	deaf := faulty("guest-silent=deaf")
	time.Sleep(moment)
	if deaf.dial() != nil {
		t.Error("a deaf guest takes a connection")
	}

	refuses := faulty("vsock-refuses")
	refuses.awaitConsole("ready on vsock port 9000")
	if refuses.dial() != nil {
		t.Error("it does not refuse")
	}
	dies := faulty("vsock-dies=200")
	dies.awaitConsole("ready on vsock port 9000")
	a := greet(t, dies.dial())
	if n, err := a.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Error("the connection lives on")
	}
	dies.wantState("Running")
}

func TestAfterABarePauseNobodyIsAnsweredWhereThatIsTheFault(t *testing.T) {
	v := booted(t, "--stand-in-fault", "vsock-after-pause")
	kept := greet(t, v.dial())
	v.wantDone("PATCH", "/vm", state("Paused"))
	v.wantDone("PATCH", "/vm", state("Resumed"))
	answered := make(chan bool, 1)
	go func() { answered <- v.dial() != nil }()
	kept.send(object{"type": "ping"})
	kept.expect("pong")
	select {
	case <-answered:
		t.Error("a new connection is answered")
	case <-time.After(moment):
	}
	// A snapshot in between is none of it.
	other := booted(t, "--stand-in-fault", "vsock-after-pause")
	other.wantDone("PATCH", "/vm", state("Paused"))
	other.wantDone("PUT", "/snapshot/create", other.snapshot("Full"))
	other.wantDone("PATCH", "/vm", state("Resumed"))
	greet(t, other.dial())
}

func TestNoKVMIsFoundAtTheStart(t *testing.T) {
	v := start(t, "--stand-in-fault", "no-kvm")
	v.configure(bootArguments)
	v.wantFault("PUT", "/actions", action("InstanceStart"), "Start microvm error: Kvm error: The host kernel reports an invalid KVM API version: -1")
}
