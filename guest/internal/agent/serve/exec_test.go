package serve

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/wire"
)

func TestOutputOfAQuickCommandIsNeverLost(t *testing.T) {
	h := connect(t)
	for i := 0; i < 300; i++ {
		r := h.exec(object{"argv": []string{"echo", "hi"}})
		r.expectCode(t, 0)
		if r.stdout.String() != "hi\n" {
			t.Fatalf("run %d: output %q", i, r.stdout.String())
		}
	}
}

func TestAMegabyteOnEachStreamArrivesWhole(t *testing.T) {
	h := connect(t)
	for i := 0; i < 10; i++ {
		r := h.exec(object{"shell": "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; exit 3"})
		r.expectCode(t, 3)
		if r.stdout.Len() != 1000000 || r.stderr.Len() != 1000000 {
			t.Fatalf("%d and %d bytes", r.stdout.Len(), r.stderr.Len())
		}
	}
}

func TestStartedComesFirst(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "argv": []string{"true"}, "user": strconv.Itoa(os.Geteuid())})
	if h.expect("started").Integer("pid", 0) == 0 {
		t.Fatal("no pid")
	}
	h.collect().expectCode(t, 0)
}

func TestAChildLeftBehindDoesNotHoldTheAnswer(t *testing.T) {
	h := connect(t)
	begin := time.Now()
	r := h.exec(object{"shell": "sleep 5 & echo done"})
	r.expectCode(t, 0)
	if r.stdout.String() != "done\n" {
		t.Fatalf("output %q", r.stdout.String())
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Fatalf("took %v", took)
	}
}

func TestAChildLeftBehindMayStillWriteWithinTheGrace(t *testing.T) {
	h := connect(t)
	for attempt := 0; attempt < 5; attempt++ { // a busy machine may wake the child too late
		r := h.exec(object{"shell": "(sleep 0.02; echo late) & echo done"})
		r.expectCode(t, 0)
		if r.stdout.String() == "done\nlate\n" {
			return
		}
	}
	t.Fatal("the child's output never came")
}

func TestAChildThatFloodsIsCutOffAfterTheGrace(t *testing.T) {
	begin := time.Now()
	connect(t).exec(object{"shell": "yes & exit 0"}).expectCode(t, 0)
	if took := time.Since(begin); took > 2*time.Second {
		t.Fatalf("took %v", took)
	}
}

func TestTheEndOfTheConnectionKillsTheGroup(t *testing.T) {
	h := connect(t)
	marker := filepath.Join(t.TempDir(), "pids")
	h.send(object{"type": "exec", "user": strconv.Itoa(os.Geteuid()),
		"shell": "sleep 100 & echo $! $$ > " + marker + "; wait"})
	h.expect("started")
	var pids []string
	waitFor(t, "the pids are written", func() bool {
		text, err := os.ReadFile(marker)
		pids = strings.Fields(string(text))
		return err == nil && len(pids) == 2
	})
	h.conn.Close()
	for _, pid := range pids {
		number, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "process "+pid+" is gone", func() bool { return isGone(number) })
	}
}

// isGone is also true of a zombie: on a test machine the orphan is another's to collect.
func isGone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestASignalReachesTheGroup(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "user": strconv.Itoa(os.Geteuid()), "shell": "sleep 100; true"})
	h.expect("started")
	time.Sleep(50 * time.Millisecond) // the shell may not have started its child yet
	h.send(object{"type": "signal", "signal": "SIGTERM"})
	if r := h.collect(); r.last.Text("signal") != "SIGTERM" {
		t.Fatalf("ended with %s", show(r.last))
	}
	h.expectUsable()
}

func TestTimeoutKillsAndSaysSo(t *testing.T) {
	h := connect(t)
	r := h.exec(object{"shell": "echo before; sleep 100", "timeoutMs": 100})
	if r.last.Text("signal") != "SIGKILL" || !r.last.Flag("timedOut", false) || r.stdout.String() != "before\n" {
		t.Fatalf("ended with %s, output %q", show(r.last), r.stdout.String())
	}
	h.expectUsable()
}

func TestInputIsDeliveredAndEnds(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "argv": []string{"cat"}, "stdin": true, "user": strconv.Itoa(os.Geteuid())})
	h.sendData([]byte("one "))
	h.sendData([]byte("two"))
	h.send(object{"type": "eof"})
	r := h.collect()
	r.expectCode(t, 0)
	if r.stdout.String() != "one two" {
		t.Fatalf("output %q", r.stdout.String())
	}
}

func TestInputWithinTheWindowRoundTrips(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "argv": []string{"cat"}, "stdin": true, "user": strconv.Itoa(os.Geteuid())})
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB, four windows
	var output bytes.Buffer
	sent, acked := 0, 0
	for output.Len() < len(data) {
		for sent < len(data) && sent-acked+32768 <= 262144 {
			h.sendData(data[sent : sent+32768])
			sent += 32768
		}
		frame := h.next()
		switch {
		case frame.Kind == wire.KindStdout:
			output.Write(frame.Payload)
		case frame.Message.Type == "ack":
			acked = int(frame.Message.Integer("offset", 0))
		}
	}
	h.send(object{"type": "eof"})
	h.collect().expectCode(t, 0)
	if !bytes.Equal(output.Bytes(), data) {
		t.Fatal("other bytes came back")
	}
}

func TestACommandThatDoesNotReadCanBeSignalled(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "argv": []string{"sleep", "100"}, "stdin": true, "user": strconv.Itoa(os.Geteuid())})
	for i := 0; i < 4; i++ {
		h.sendData(make([]byte, 65536)) // a whole window; the pipe takes a quarter of it
	}
	h.send(object{"type": "signal", "signal": "SIGKILL"})
	if r := h.collect(); r.last.Text("signal") != "SIGKILL" || r.last.Flag("timedOut", false) {
		t.Fatalf("ended with %s", show(r.last))
	}
	h.expectUsable()
}

func TestMoreInputThanTheWindowIsTheHostsFault(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "argv": []string{"sleep", "100"}, "stdin": true, "user": strconv.Itoa(os.Geteuid())})
	h.expect("started")
	frame := append(make([]byte, wire.HeaderBytes), make([]byte, 65536)...)
	wire.PutHeader(frame, wire.KindData, 65536)
	for i := 0; i < 7; i++ {
		// The pipe's 64 KiB and the window are five of them. The agent may hang up while the others are on their way.
		if _, err := h.conn.Write(frame); err != nil && i < 5 {
			t.Fatal(err)
		}
	}
	if r := h.collect(); r.last.Text("code") != "bad-request" {
		t.Fatalf("ended with %s", show(r.last))
	}
	h.expectEnd()
}

func TestClosedInputIsNoError(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "shell": "exec <&-; sleep 0.2", "stdin": true, "user": strconv.Itoa(os.Geteuid())})
	for i := 0; i < 4; i++ {
		h.sendData(make([]byte, 65536))
	}
	h.collect().expectCode(t, 0)
	// What crosses the exit on its way is dropped.
	h.sendData([]byte("late"))
	h.send(object{"type": "eof"})
	h.send(object{"type": "signal", "signal": "SIGTERM"})
	h.expectUsable()
}

func TestASlowHostSlowsTheCommand(t *testing.T) {
	h := connect(t)
	progress := filepath.Join(t.TempDir(), "progress")
	h.send(object{"type": "exec", "user": strconv.Itoa(os.Geteuid()),
		"shell": "for i in 1 2 3 4 5 6 7 8; do head -c 1000000 /dev/zero; echo $i > " + progress + "; done"})
	time.Sleep(300 * time.Millisecond)
	if text, err := os.ReadFile(progress); err == nil && strings.TrimSpace(string(text)) == "8" {
		t.Fatal("eight megabytes went into a connection that nobody reads")
	}
	r := h.collect()
	r.expectCode(t, 0)
	if r.stdout.Len() != 8000000 {
		t.Fatalf("%d bytes", r.stdout.Len())
	}
}

func TestATimeoutCountsWhileTheHostDoesNotRead(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "user": strconv.Itoa(os.Geteuid()), "argv": []string{"yes"}, "timeoutMs": 100})
	time.Sleep(200 * time.Millisecond)
	if r := h.collect(); !r.last.Flag("timedOut", false) {
		t.Fatalf("ended with %s", show(r.last))
	}
}

func TestErrorsBeforeTheStartHaveTheirCodes(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "#!/bin/sh\n", 0o644)
	orphan := write("orphan", "#!/no/such/interpreter\n", 0o755)
	binary := write("binary", "\x00\x01\x02", 0o755)
	for _, c := range []struct {
		message object
		code    string
	}{
		{object{"argv": []string{"no-such-command"}}, "command-not-found"},
		{object{"argv": []string{folder + "/nothing"}}, "command-not-found"},
		{object{"argv": []string{""}}, "command-not-found"},
		{object{"argv": []string{"true"}, "env": object{"PATH": folder}}, "command-not-found"},
		{object{"argv": []string{plain}}, "not-executable"},
		{object{"argv": []string{"plain"}, "env": object{"PATH": folder}}, "not-executable"},
		{object{"argv": []string{folder}}, "not-executable"},
		{object{"argv": []string{orphan}}, "not-executable"},
		{object{"argv": []string{binary}}, "not-executable"},
		{object{"argv": []string{"true"}, "cwd": folder + "/nothing"}, "no-such-folder"},
		{object{"argv": []string{"true"}, "cwd": plain}, "no-such-folder"},
		{object{"argv": []string{"true"}, "user": "no-such-user"}, "no-such-user"},
		{object{"argv": []string{"true"}, "user": "0:no-such-group"}, "no-such-user"},
		{object{"argv": []string{"true", strings.Repeat("x", 131072)}}, "arguments-too-long"},
	} {
		h.exec(c.message).expectError(t, c.code)
	}
	h.expectUsable()
}

func TestEnvironmentFolderAndUser(t *testing.T) {
	h := connect(t)
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	r := h.exec(object{"shell": "echo $A:$LANG:$PATH; pwd", "cwd": folder, "env": object{"A": "b=c", "LANG": "x"}})
	r.expectCode(t, 0)
	want := "b=c:x:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" + folder + "\n"
	if r.stdout.String() != want {
		t.Fatalf("output %q", r.stdout.String())
	}
	if os.Geteuid() != 0 {
		t.Skip("other users need root")
	}
	r = h.exec(object{"shell": "id -u; id -g; id -G; echo $HOME $USER", "user": "4321:1234"})
	if r.stdout.String() != "4321\n1234\n1234\n/ 4321\n" {
		t.Fatalf("output %q", r.stdout.String())
	}
}

func TestTheCommandLeadsItsSession(t *testing.T) {
	r := connect(t).exec(object{"shell": "cut -d' ' -f1,5,6 /proc/$$/stat"})
	fields := strings.Fields(r.stdout.String())
	if len(fields) != 3 || fields[0] != fields[1] || fields[0] != fields[2] {
		t.Fatalf("pid, group, session: %v", fields)
	}
}

func TestHundredsOfCommandsLeaveNoDescriptorBehind(t *testing.T) {
	h := connect(t)
	h.exec(object{"argv": []string{"true"}}).expectCode(t, 0)
	before := openDescriptors(t)
	for i := 0; i < 100; i++ {
		h.exec(object{"argv": []string{"true"}, "stdin": i%2 == 0}).expectCode(t, 0)
		h.exec(object{"argv": []string{"no-such-command"}}).expectError(t, "command-not-found")
		h.exec(object{"argv": []string{"true"}, "cwd": "/proc/1/no"}).expectError(t, "no-such-folder")
	}
	waitFor(t, "descriptors are closed", func() bool { return openDescriptors(t) <= before })
}

func openDescriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestCommandsAreNotHeldByOneAnother(t *testing.T) {
	_, path := newServer(t)
	results := make(chan error, 64)
	for i := 0; i < cap(results); i++ {
		go func(i int) {
			h := greet(t, path)
			r := h.exec(object{"shell": fmt.Sprintf("sleep 0.2; echo %d", i)})
			if r.stdout.String() != fmt.Sprintf("%d\n", i) {
				results <- fmt.Errorf("output %q of %d", r.stdout.String(), i)
				return
			}
			results <- nil
		}(i)
	}
	for i := 0; i < cap(results); i++ {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
}

func TestAStoppedCommandGoesOn(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "user": strconv.Itoa(os.Geteuid()), "argv": []string{"cat"}, "stdin": true})
	pid := int(h.expect("started").Integer("pid", 0))
	h.send(object{"type": "signal", "signal": "SIGSTOP"})
	h.send(object{"type": "eof"}) // would end it
	time.Sleep(50 * time.Millisecond)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatal("a stopped command ended")
	}
	h.send(object{"type": "signal", "signal": "SIGCONT"})
	h.collect().expectCode(t, 0)
}
