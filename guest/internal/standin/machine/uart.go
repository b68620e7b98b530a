package machine

import (
	"bytes"
	"io"
	"sync"

	"bandsox.dev/guest/internal/standin/gate"
)

// frameStart begins a frame of the text-safe coding (SERIAL.md). Sent alone it says that the terminal is in the agent's hand.
const frameStart = 0x1e

// inputBytes is what is taken of the input at once; the real device has 64 bytes.
const inputBytes = 4096

// UART is the machine's serial port, whose far end is a pair of streams of the VMM: its stdin and stdout.
type UART struct {
	gate *gate.Gate

	mutex  sync.Mutex
	output io.Writer
	// line takes the input; nil while the guest reads nothing.
	line *io.PipeWriter
}

// NewUART makes one whose guest reads nothing yet.
func NewUART(output io.Writer, machine *gate.Gate) *UART {
	return &UART{gate: machine, output: output}
}

// Hear carries the input to the guest until it ends. What comes while nobody in the guest reads is lost.
func (u *UART) Hear(input io.Reader) {
	data := make([]byte, inputBytes)
	for {
		n, err := input.Read(data)
		u.gate.Pass()
		u.mutex.Lock()
		line := u.line
		u.mutex.Unlock()
		if line != nil && n > 0 {
			_, _ = line.Write(data[:n]) // an end that was closed reads nothing
		}
		if err != nil {
			return
		}
	}
}

// Print writes text as a terminal does.
func (u *UART) Print(text []byte) {
	_ = u.write(bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))) // a console has nobody to tell
}

func (u *UART) write(data []byte) error {
	u.gate.Pass()
	u.mutex.Lock()
	defer u.mutex.Unlock()
	_, err := u.output.Write(data)
	return err
}

// open is the agent's opening the terminal; of a machine that was loaded, it has been open all along.
func (u *UART) open(isNew bool) (io.ReadWriteCloser, error) {
	reader, writer := io.Pipe()
	u.mutex.Lock()
	u.line = writer
	u.mutex.Unlock()
	if isNew {
		if err := u.write([]byte{frameStart}); err != nil {
			return nil, err
		}
	}
	return &terminal{u, reader}, nil
}

// terminal is the agent's end.
type terminal struct {
	uart   *UART
	reader *io.PipeReader
}

func (t *terminal) Read(data []byte) (int, error) { return t.reader.Read(data) }

func (t *terminal) Write(data []byte) (int, error) {
	if err := t.uart.write(data); err != nil {
		return 0, err
	}
	return len(data), nil
}

func (t *terminal) Close() error { return t.reader.Close() }
