package serve

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"bandsox.dev/guest/internal/wire"
)

var eightyByTwentyFour = object{"cols": 80, "rows": 24}

// atTerminal sends an exec with a terminal and waits until it has started.
func (h *host) atTerminal(message object) {
	h.t.Helper()
	message["type"] = "exec"
	if _, given := message["pty"]; !given {
		message["pty"] = eightyByTwentyFour
	}
	if _, given := message["user"]; !given {
		message["user"] = strconv.Itoa(os.Geteuid())
	}
	h.send(message)
	h.expect("started")
}

// expectShown reads what the terminal shows until it holds a text, and gives all of it.
func (h *host) expectShown(text string) string {
	h.t.Helper()
	var shown bytes.Buffer
	for !strings.Contains(shown.String(), text) {
		frame := h.next()
		switch {
		case frame.Kind == wire.KindStdout:
			shown.Write(frame.Payload)
		case frame.Kind != wire.KindMessage || frame.Message.Type != "ack":
			h.t.Fatalf("%s came after %q, %q was meant", show(frame.Message), shown.String(), text)
		}
	}
	return shown.String()
}

func TestATerminalHasANameASizeAndAKind(t *testing.T) {
	h := connect(t)
	script := "tty; stty size; echo $TERM; echo oops >&2; test -t 0 && test -t 1 && test -t 2 && : < /dev/tty && exit 3"
	r := h.exec(object{"shell": script, "pty": object{"cols": 101, "rows": 31}})
	r.expectCode(t, 3)
	lines := strings.Split(r.stdout.String(), "\r\n")
	if !strings.HasPrefix(lines[0], "/dev/pts/") || strings.Join(lines[1:], ",") != "31 101,xterm-256color,oops," {
		t.Fatalf("output %q", r.stdout.String())
	}
	if r.stderr.Len() != 0 {
		t.Fatalf("a terminal is one stream, on stderr came %q", r.stderr.String())
	}
	r = h.exec(object{"shell": "echo $TERM", "env": object{"TERM": "vt100"}, "pty": eightyByTwentyFour})
	if r.stdout.String() != "vt100\r\n" {
		t.Fatalf("output %q", r.stdout.String())
	}
	if r = h.exec(object{"shell": "tty"}); r.stdout.String() != "not a tty\n" {
		t.Fatalf("without a terminal: %q", r.stdout.String())
	}
}

func TestATerminalBelongsToTheUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("other users need root")
	}
	r := connect(t).exec(object{"shell": "stat -c '%u %a' $(tty); : <> $(tty) && echo opened", "user": "4321:1234", "pty": eightyByTwentyFour})
	r.expectCode(t, 0)
	if r.stdout.String() != "4321 620\r\nopened\r\n" {
		t.Fatalf("output %q", r.stdout.String())
	}
}

func TestTypedLinesAreEchoedAndRead(t *testing.T) {
	h := connect(t)
	h.atTerminal(object{"shell": "read line; echo \"<$line>\"", "stdin": true})
	h.sendData([]byte("héx\x7f\x7fallo\n")) // the first erase takes x, the second all of é
	r := h.collect()
	r.expectCode(t, 0)
	if !strings.HasSuffix(r.stdout.String(), "\r\n<hallo>\r\n") {
		t.Fatalf("output %q", r.stdout.String())
	}
}

func TestCtrlCInterruptsTheForegroundOnly(t *testing.T) {
	h := connect(t)
	// It is the child that says it is ready: before it runs, the key would reach the shell alone.
	script := "trap 'echo interrupted' INT; sh -c 'echo ready; exec sleep 100'; echo goes on; exit 4"
	h.atTerminal(object{"shell": script, "stdin": true})
	h.expectShown("ready")
	h.sendData([]byte{3})
	r := h.collect()
	r.expectCode(t, 4)
	if !strings.Contains(r.stdout.String(), "interrupted\r\ngoes on\r\n") {
		t.Fatalf("output %q", r.stdout.String())
	}
}

func TestAResizeReachesTheCommand(t *testing.T) {
	h := connect(t)
	h.atTerminal(object{"shell": "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done"})
	h.expectShown("ready")
	h.send(object{"type": "resize", "cols": 132, "rows": 50})
	r := h.collect()
	r.expectCode(t, 0)
	if r.stdout.String() != "50 132\r\n" {
		t.Fatalf("output %q", r.stdout.String())
	}
	h.send(object{"type": "resize", "cols": 80, "rows": 24}) // as one that has crossed the exit
	h.expectUsable()
}

func TestAResizeWithoutATerminalIsTheHostsFault(t *testing.T) {
	h := connect(t)
	h.send(object{"type": "exec", "argv": []string{"sleep", "100"}, "user": strconv.Itoa(os.Geteuid())})
	h.expect("started")
	h.send(object{"type": "resize", "cols": 80, "rows": 24})
	h.expectError("bad-request")
	h.expectEnd()
}

func TestTheEndOfInputIsTyped(t *testing.T) {
	for _, c := range []struct{ typed, shown string }{
		{"", ""}, {"line\n", "line\r\nline\r\n"}, {"unfinished", "unfinishedunfinished"},
	} {
		h := connect(t)
		h.atTerminal(object{"argv": []string{"cat"}, "stdin": true})
		if c.typed != "" {
			h.sendData([]byte(c.typed))
		}
		h.send(object{"type": "eof"})
		r := h.collect()
		r.expectCode(t, 0)
		if r.stdout.String() != c.shown {
			t.Fatalf("typed %q: output %q", c.typed, r.stdout.String())
		}
	}
}

func TestOutputOfAQuickCommandAtATerminalIsNeverLost(t *testing.T) {
	h := connect(t)
	for i := 0; i < 300; i++ {
		r := h.exec(object{"argv": []string{"echo", "hi"}, "pty": eightyByTwentyFour})
		r.expectCode(t, 0)
		if r.stdout.String() != "hi\r\n" {
			t.Fatalf("run %d: output %q", i, r.stdout.String())
		}
	}
}

func TestAMegabyteAtATerminalArrivesWholeAtASlowHost(t *testing.T) {
	h := connect(t)
	for i := 0; i < 5; i++ {
		// What is still in the terminal when the command has ended is the point: the last bytes come with the end.
		h.atTerminal(object{"shell": "stty -opost; head -c 1000000 /dev/zero; exit 3"})
		time.Sleep(20 * time.Millisecond)
		r := h.collect()
		r.expectCode(t, 3)
		if r.stdout.Len() != 1000000 {
			t.Fatalf("%d bytes", r.stdout.Len())
		}
	}
}

func TestBytesPassARawTerminalUnharmedAtThePaceOfTheCommand(t *testing.T) {
	h := connect(t)
	h.atTerminal(object{"shell": "stty raw -echo; echo ready; head -c 500000; exit 0", "stdin": true})
	h.expectShown("ready\n")
	data := make([]byte, 500000)
	rand.New(rand.NewSource(1)).Read(data)
	var output bytes.Buffer
	sent, acked := 0, 0
	for output.Len() < len(data) {
		for sent < len(data) && sent-acked+25000 <= 262144 {
			h.sendData(data[sent : sent+25000])
			sent += 25000
		}
		frame := h.next()
		switch {
		case frame.Kind == wire.KindStdout:
			output.Write(frame.Payload)
		case frame.Message.Type == "ack":
			acked = int(frame.Message.Integer("offset", 0))
		default:
			t.Fatalf("%s after %d bytes", show(frame.Message), output.Len())
		}
	}
	h.collect().expectCode(t, 0)
	if !bytes.Equal(output.Bytes(), data) {
		t.Fatal("other bytes came back")
	}
}

func TestACommandThatDoesNotReadItsTerminalCanBeSignalled(t *testing.T) {
	h := connect(t)
	h.atTerminal(object{"shell": "stty raw -echo; echo ready; exec sleep 100", "stdin": true})
	h.expectShown("ready")
	for i := 0; i < 4; i++ {
		h.sendData(bytes.Repeat([]byte("x"), 65536)) // a whole window; the terminal takes a small part of it
	}
	h.send(object{"type": "signal", "signal": "SIGTERM"})
	if r := h.collect(); r.last.Text("signal") != "SIGTERM" {
		t.Fatalf("ended with %s", show(r.last))
	}
	h.expectUsable()
}

func TestACommandMayCloseItsTerminalAndOpenItAgain(t *testing.T) {
	r := connect(t).exec(object{"shell": "exec 0<&- 1>&- 2>&-; sleep 0.2; exec > /dev/tty; echo again", "pty": eightyByTwentyFour})
	r.expectCode(t, 0)
	if r.stdout.String() != "again\r\n" {
		t.Fatalf("output %q", r.stdout.String())
	}
}

func TestAChildLeftBehindAtATerminalDoesNotHoldTheAnswer(t *testing.T) {
	for _, script := range []string{"trap '' HUP; sleep 5 & echo done", "trap '' HUP; yes & echo done"} {
		begin := time.Now()
		r := connect(t).exec(object{"shell": script, "pty": eightyByTwentyFour})
		r.expectCode(t, 0)
		if !strings.Contains(r.stdout.String(), "done\r\n") {
			t.Fatalf("output %.100q", r.stdout.String())
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Fatalf("took %v", took)
		}
	}
}

// jobsScript has a job in a group of its own, as an interactive shell makes them, and a command in the foreground.
const jobsScript = "set -m; trap '' HUP; sleep 100 & echo $! $$ > %s; echo ready; sleep 100"

func TestTheEndOfTheConnectionKillsTheWholeSession(t *testing.T) {
	h := connect(t)
	marker := filepath.Join(t.TempDir(), "pids")
	h.atTerminal(object{"shell": fmt.Sprintf(jobsScript, marker), "stdin": true})
	h.expectShown("ready")
	h.conn.Close()
	expectGone(t, marker)
}

func TestATimeoutKillsTheWholeSession(t *testing.T) {
	h := connect(t)
	marker := filepath.Join(t.TempDir(), "pids")
	r := h.exec(object{"shell": fmt.Sprintf(jobsScript, marker), "timeoutMs": 500, "pty": eightyByTwentyFour})
	if r.last.Text("signal") != "SIGKILL" || !r.last.Flag("timedOut", false) {
		t.Fatalf("ended with %s", show(r.last))
	}
	expectGone(t, marker)
	h.expectUsable()
}

// expectGone waits for the end of the processes that a file names.
func expectGone(t *testing.T, marker string) {
	t.Helper()
	text, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range strings.Fields(string(text)) {
		number, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "process "+pid+" is gone", func() bool { return isGone(number) })
	}
}

func TestTerminalsLeaveNoDescriptorBehind(t *testing.T) {
	h := connect(t)
	h.exec(object{"argv": []string{"true"}, "pty": eightyByTwentyFour}).expectCode(t, 0)
	before := openDescriptors(t)
	for i := 0; i < 100; i++ {
		h.exec(object{"argv": []string{"true"}, "pty": eightyByTwentyFour, "stdin": i%2 == 0}).expectCode(t, 0)
		h.exec(object{"argv": []string{"no-such-command"}, "pty": eightyByTwentyFour}).expectError(t, "command-not-found")
		h.exec(object{"argv": []string{"true", strings.Repeat("x", 131072)}, "pty": eightyByTwentyFour, "stdin": true}).
			expectError(t, "arguments-too-long")
	}
	waitFor(t, "descriptors are closed", func() bool { return openDescriptors(t) <= before })
}
