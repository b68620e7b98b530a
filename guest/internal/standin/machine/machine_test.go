package machine

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"bandsox.dev/guest/internal/standin/gate"
)

// patience is how long a test waits for what must come; moment for what must not.
const (
	patience = 10 * time.Second
	moment   = 20 * time.Millisecond
)

func TestTheKernelsArgumentsAreUnderstood(t *testing.T) {
	for commandLine, want := range map[string]arguments{
		"":                               {hasConsole: true, hasUART: true, hasKeyboard: true},
		"console=ttyS0 quiet":            {hasConsole: true, hasUART: true, hasKeyboard: true, isQuiet: true},
		"console=ttyS0,115200 ro":        {hasConsole: true, hasUART: true, hasKeyboard: true},
		"console=tty0 console=ttyS0":     {hasConsole: true, hasUART: true, hasKeyboard: true},
		"console=tty0":                   {hasUART: true, hasKeyboard: true},
		"8250.nr_uarts=0 console=ttyS0":  {hasKeyboard: true},
		"i8042.noaux i8042.nokbd":        {hasConsole: true, hasUART: true},
		"console=ttyS1 bandsox.quiet=no": {hasUART: true, hasKeyboard: true},
	} {
		if got := parseArguments(commandLine); got != want {
			t.Errorf("%q: %+v, want %+v", commandLine, got, want)
		}
	}
}

// output is what came out of a UART.
type output struct {
	mutex sync.Mutex
	bytes.Buffer
}

func (o *output) Write(data []byte) (int, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.Buffer.Write(data)
}

func (o *output) text() string {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.Buffer.String()
}

func TestAnAgentThatBootsSaysThatItHasTheTerminalAndALoadedOneHasSaidSo(t *testing.T) {
	for isNew, want := range map[bool]string{true: "text\r\n\x1e\x80", false: "text\r\n\x80"} {
		out := &output{}
		uart := NewUART(out, &gate.Gate{})
		uart.Print([]byte("text\n"))
		line, err := uart.open(isNew)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := line.Write([]byte{0x80}); err != nil {
			t.Fatal(err)
		}
		if out.text() != want {
			t.Errorf("new %v: %q, want %q", isNew, out.text(), want)
		}
	}
}

func TestInputBeforeTheAgentReadsIsLost(t *testing.T) {
	uart := NewUART(&output{}, &gate.Gate{})
	uart.Hear(strings.NewReader("lost")) // until its end
	line, err := uart.open(true)
	if err != nil {
		t.Fatal(err)
	}
	go uart.Hear(strings.NewReader("found"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(line, got); err != nil || string(got) != "found" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAUARTIsStillWhileTheMachineIsPaused(t *testing.T) {
	machine, out := &gate.Gate{}, &output{}
	uart := NewUART(out, machine)
	machine.Close()
	written := make(chan struct{})
	go func() {
		uart.Print([]byte("late"))
		close(written)
	}()
	time.Sleep(moment)
	if out.text() != "" {
		t.Errorf("it says %q", out.text())
	}
	machine.Open()
	select {
	case <-written:
	case <-time.After(patience):
		t.Fatal("it does not go on")
	}
	if out.text() != "late" {
		t.Errorf("it says %q", out.text())
	}
}
