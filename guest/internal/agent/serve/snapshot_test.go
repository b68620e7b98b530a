package serve

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"bandsox.dev/guest/internal/wire"
)

// newServerWithHooks gives a folder for hooks, too.
func newServerWithHooks(t *testing.T) (server *Server, path, folder string) {
	server, path = newServer(t)
	folder = t.TempDir()
	server.Snapshot.Hooks = folder
	return server, path, folder
}

func writeHook(t *testing.T, folder, name, script string) {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// jobs asks for the commands.
func (h *host) jobs() []wire.Job {
	h.t.Helper()
	h.send(object{"type": "jobs"})
	var list []wire.Job
	if err := json.Unmarshal(h.expect("jobs").Fields["jobs"], &list); err != nil {
		h.t.Fatal(err)
	}
	return list
}

func (h *host) identify(fields object) wire.Message {
	h.t.Helper()
	fields["type"] = "identify"
	h.send(fields)
	return h.expect("identified")
}

func (h *host) expectOutput(command object, output string) {
	h.t.Helper()
	result := h.exec(command)
	if found := result.stdout.String(); found != output {
		h.t.Fatalf("the command wrote %q, not %q", found, output)
	}
}

func TestWhileFrozenNoCommandBeginsAndTheRestWorks(t *testing.T) {
	_, path := newServer(t)
	h := greet(t, path)
	h.send(object{"type": "freeze"})
	frozen := h.expect("frozen")
	if len(frozen.Texts("warnings")) == 0 {
		t.Fatal("an agent without control groups claims to have frozen something")
	}
	h.exec(object{"shell": "true"}).expectError(t, "frozen")
	h.send(job(jobName, "true", 1000))
	h.expectError("frozen")
	h.expectUsable()
	h.jobs()
	h.send(object{"type": "links"})
	h.expect("links")
	for i := 0; i < 2; i++ { // the second time it goes on already
		h.send(object{"type": "thaw"})
		h.expect("thawed")
	}
	h.exec(object{"shell": "true"}).expectCode(t, 0)
	h.send(job(jobName, "exit 3", 1000)) // the name is free: it has not run
	h.expect("started")
	h.collect().expectCode(t, 3)
}

func TestALeaseThatIsNotRenewedEnds(t *testing.T) {
	_, path := newServer(t)
	h := greet(t, path)
	h.send(object{"type": "freeze", "leaseMs": 1000})
	h.expect("frozen")
	time.Sleep(600 * time.Millisecond)
	h.send(object{"type": "freeze", "leaseMs": 1000})
	h.expect("frozen")
	time.Sleep(600 * time.Millisecond)
	h.exec(object{"shell": "true"}).expectError(t, "frozen") // by the first lease it would go on
	waitFor(t, "it goes on by itself", func() bool { return h.exec(object{"shell": "true"}).last.Type == "exit" })
}

func TestHooksRunInTheOrderOfTheirNamesWithWhatTheyNeed(t *testing.T) {
	_, path, folder := newServerWithHooks(t)
	log := filepath.Join(t.TempDir(), "log")
	writeHook(t, folder, "snapshot.d/20-second", "echo second $BANDSOX_HOOK $BANDSOX_ID $PATH >> "+log+"; cat >> "+log)
	writeHook(t, folder, "snapshot.d/10-first", "echo first >> "+log)
	writeHook(t, folder, "snapshot.d/.hidden", "echo hidden >> "+log)
	writeHook(t, folder, "snapshot.d/30-off", "echo off >> "+log)
	if err := os.Chmod(filepath.Join(folder, "snapshot.d/30-off"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := greet(t, path)
	h.identify(object{"env": object{"BANDSOX_ID": "sbx_1"}})
	for i := 0; i < 2; i++ { // the second time it is frozen, and they do not run again
		h.send(object{"type": "freeze"})
		h.expect("frozen")
	}
	want := "first\nsecond snapshot sbx_1 /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
	if found := read(t, log); found != want {
		t.Fatalf("the hooks wrote %q", found)
	}
}

func TestAHookThatFailsLeavesEverythingAsItWas(t *testing.T) {
	_, path, folder := newServerWithHooks(t)
	log := filepath.Join(t.TempDir(), "log")
	writeHook(t, folder, "snapshot.d/10-bad", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo no room >&2; exit 3")
	writeHook(t, folder, "snapshot.d/20-later", "echo later > "+log)
	h := greet(t, path)
	h.send(object{"type": "freeze"})
	message := h.expect("error")
	if text := message.Text("message"); message.Text("code") != "hook-failed" || !strings.Contains(text, "10-bad ended with status 3") ||
		!strings.HasSuffix(text, "no room") {
		t.Fatal(show(message))
	}
	if _, err := os.Stat(log); !os.IsNotExist(err) {
		t.Fatal("the hook behind one that failed was run")
	}
	h.exec(object{"shell": "true"}).expectCode(t, 0)
}

func TestAHookThatDoesNotEndIsKilledWithAllOfItsGroup(t *testing.T) {
	_, path, folder := newServerWithHooks(t)
	pids := filepath.Join(t.TempDir(), "pids")
	writeHook(t, folder, "snapshot.d/slow", "echo $$ > "+pids+"; sleep 60 & echo $! >> "+pids+"; echo working; wait")
	h := greet(t, path)
	started := time.Now()
	h.send(object{"type": "freeze", "hooksMs": 400})
	message := h.expect("error")
	if text := message.Text("message"); message.Text("code") != "hook-failed" || !strings.Contains(text, "slow did not end") || !strings.HasSuffix(text, "working") {
		t.Fatal(show(message))
	}
	if took := time.Since(started); took > 3*time.Second {
		t.Fatalf("it took %v", took)
	}
	for _, line := range strings.Fields(read(t, pids)) {
		pid, err := strconv.Atoi(line)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the hook is gone", func() bool { return isGone(pid) })
	}
}

func TestAStopDoesNotWaitForHooks(t *testing.T) {
	server, path, folder := newServerWithHooks(t)
	begun := filepath.Join(t.TempDir(), "begun")
	writeHook(t, folder, "snapshot.d/slow", "touch "+begun+"; sleep 60")
	h := greet(t, path)
	h.send(object{"type": "freeze", "hooksMs": 60000})
	waitFor(t, "the hook runs", func() bool { _, err := os.Stat(begun); return err == nil })
	started := time.Now()
	server.Stop()
	if took := time.Since(started); took > 3*time.Second {
		t.Fatalf("it took %v", took)
	}
	h.expect("error")
}

func TestRestoreHooksFailWithoutStoppingAnything(t *testing.T) {
	_, path, folder := newServerWithHooks(t)
	log := filepath.Join(t.TempDir(), "log")
	writeHook(t, folder, "restore.d/10-bad", "echo sorry; exit 1")
	writeHook(t, folder, "restore.d/20-good", "echo $BANDSOX_HOOK $BANDSOX_ID > "+log)
	h := greet(t, path)
	h.send(object{"type": "freeze"})
	h.expect("frozen")
	identified := h.identify(object{"restored": true, "env": object{"BANDSOX_ID": "sbx_2"}})
	if failures := identified.Texts("failures"); len(failures) != 1 || failures[0] != "the hook 10-bad ended with status 1: sorry" {
		t.Fatal(failures)
	}
	if found := read(t, log); found != "restore sbx_2\n" {
		t.Fatalf("%q", found)
	}
	h.exec(object{"shell": "true"}).expectCode(t, 0) // thawed
}

func TestAnIdentityIsInTheEnvironmentOfLaterCommands(t *testing.T) {
	h := connect(t)
	h.identify(object{"env": object{"BANDSOX_ID": "one", "BANDSOX_OLD": "x"}})
	h.identify(object{"env": object{"BANDSOX_ID": "two"}})
	h.identify(object{}) // says nothing of it
	h.expectOutput(object{"shell": "echo $BANDSOX_ID,$BANDSOX_OLD"}, "two,\n")
	h.expectOutput(object{"shell": "echo $BANDSOX_ID", "env": object{"BANDSOX_ID": "mine"}}, "mine\n")
	h.identify(object{"env": object{}})
	h.expectOutput(object{"shell": "echo $BANDSOX_ID"}, "\n")
}

func TestWhatIsNotAMachineSaysWhatItLeftOut(t *testing.T) {
	h := connect(t)
	identified := h.identify(object{"hostname": "other", "machineId": strings.Repeat("0", 32), "timeUs": 1, "port": 9,
		"entropy": "AAECAwQFBgcICQoLDA0ODw=="})
	if failures := identified.Texts("failures"); len(failures) != 5 {
		t.Fatal(failures)
	}
	if name, err := os.Hostname(); err != nil || name == "other" {
		t.Fatal(name, err)
	}
}

func TestPortsAreChangedBehindTheAnswer(t *testing.T) {
	server, path := newServer(t)
	var said []string
	server.Snapshot.Listen = func(port uint32) (func(), error) {
		said = append(said, "listen "+strconv.Itoa(int(port)))
		return func() { said = append(said, "leave") }, nil
	}
	server.Snapshot.Port = func() uint32 { return 9007 }
	h := greet(t, path)
	if port := h.identify(object{"port": 9007}).Integer("port", 0); port != 9007 {
		t.Fatal(port)
	}
	h.expectUsable() // the answer was written, and what follows it done
	if strings.Join(said, ",") != "listen 9007,leave" {
		t.Fatal(said)
	}
}

func TestCommandsAreListedAndAttachedToFromTheOldestOutput(t *testing.T) {
	server, path := newServer(t)
	goFile := filepath.Join(t.TempDir(), "go")
	shell := "echo one; until test -e " + goFile + "; do sleep 0.01; done; echo"
	h := greet(t, path)
	h.send(job(jobName, shell, 20000))
	pid := h.expect("started").Integer("pid", 0)
	h.next()
	list := greet(t, path).jobs()
	if len(list) != 1 || list[0].Job != jobName || int64(list[0].Pid) != pid || list[0].Command != shell ||
		list[0].Ended || list[0].Pty || !list[0].Attached || list[0].From != 0 || list[0].To != 4 {
		t.Fatalf("%+v", list)
	}
	h.send(object{"type": "ack", "offset": 2})
	h.lose(server)
	h = greet(t, path)
	h.send(object{"type": "attach", "job": jobName})
	if offset := h.expect("attached").Integer("offset", -1); offset != 2 {
		t.Fatalf("attached at %d", offset)
	}
	if err := os.WriteFile(goFile, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.collect().expectCode(t, 0)
	if list := greet(t, path).jobs(); len(list) != 1 || !list[0].Ended || list[0].To != 5 {
		t.Fatalf("%+v", list)
	}
}

func TestAListOfCommandsFitsIntoAMessage(t *testing.T) {
	_, path := newServer(t)
	h := greet(t, path)
	for i := 0; i < 256; i++ {
		h.send(job("job-number-"+strconv.Itoa(100000+i), "true "+strings.Repeat("<", 300), 60000))
		h.expect("started")
		h.collect()
		h = greet(t, path) // so that the end is kept
	}
	if list := h.jobs(); len(list) < 100 || len(list) >= 256 || len(list[0].Command) != 256 {
		t.Fatalf("%d commands", len(list))
	}
}

func TestAfterARestoreACommandGoesOnWithoutAHost(t *testing.T) {
	const lines = 300000 // 2 MB of output, which nobody reads
	_, path := newServer(t)
	goFile := filepath.Join(t.TempDir(), "go")
	h := greet(t, path)
	// keepMs 1: by the usual rule it would be killed as soon as its connection is lost.
	h.send(job(jobName, "echo before; until test -e "+goFile+"; do sleep 0.01; done; seq 1 "+strconv.Itoa(lines)+"; touch "+goFile+".done; sleep 0.3; echo end", 1))
	h.expect("started")
	other := greet(t, path)
	other.identify(object{"restored": true})
	h.expectEnd() // the former host's connection
	if err := os.WriteFile(goFile, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "nobody holds it up", func() bool { _, err := os.Stat(goFile + ".done"); return err == nil })
	list := other.jobs()
	if len(list) != 1 || list[0].Attached || list[0].From == 0 || list[0].To-list[0].From > 1<<20 {
		t.Fatalf("%+v", list)
	}
	other.send(object{"type": "attach", "job": jobName, "offset": 0}) // below the oldest
	other.expectError("bad-request")
	h = greet(t, path)
	h.send(object{"type": "attach", "job": jobName})
	offset := h.expect("attached").Integer("offset", -1)
	var all bytes.Buffer
	all.WriteString("before\n")
	for i := 1; i <= lines; i++ {
		all.WriteString(strconv.Itoa(i) + "\n")
	}
	all.WriteString("end\n")
	rest := h.collectAcking(int(offset))
	if want := all.Bytes()[offset:]; !bytes.Equal(rest.stdout.Bytes(), want) {
		t.Fatalf("%d bytes from %d on, %d were meant", rest.stdout.Len(), offset, len(want))
	}
	rest.expectCode(t, 0)
}

func TestAnUnattendedCommandIsHeldUpOnlyWhileSomebodyIsThere(t *testing.T) {
	server, path := newServer(t)
	done := filepath.Join(t.TempDir(), "done")
	h := greet(t, path)
	h.send(job(jobName, "sleep 0.2; head -c 5000000 /dev/zero; touch "+done, 1))
	h.expect("started")
	greet(t, path).identify(object{"restored": true})
	h.expectEnd()
	h = greet(t, path)
	h.send(object{"type": "attach", "job": jobName})
	h.expect("attached")
	h.next() // and acknowledges nothing
	time.Sleep(500 * time.Millisecond)
	if _, err := os.Stat(done); err == nil {
		t.Fatal("output was dropped under a host that is there")
	}
	h.lose(server)
	waitFor(t, "it goes on without the host", func() bool { _, err := os.Stat(done); return err == nil })
	time.Sleep(50 * time.Millisecond) // longer than keepMs
	if list := greet(t, path).jobs(); len(list) != 1 || list[0].To != 5000000 {
		t.Fatalf("%+v", list)
	}
}

func TestHooksWithoutTimeAreNotRun(t *testing.T) {
	_, path, folder := newServerWithHooks(t)
	writeHook(t, folder, "snapshot.d/10-refuse", "exit 3")
	h := greet(t, path)
	h.send(object{"type": "freeze", "hooksMs": 0})
	h.expect("frozen")
	h.send(object{"type": "thaw"})
	h.expect("thawed")
	h.send(object{"type": "freeze"})
	h.expectError("hook-failed")
}
