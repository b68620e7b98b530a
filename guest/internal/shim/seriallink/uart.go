package seriallink

import (
	"bytes"
	"io"
	"os"
	"sync"

	"bandsox.dev/guest/internal/serial"
	"bandsox.dev/guest/internal/shim/fifo"
)

const (
	// frameStart is the byte that begins a frame of the text-safe coding (SERIAL.md).
	frameStart = 0x1e
	// maxWriteBytes is PIPE_BUF: what one write(2) puts into a pipe in one piece, whoever else writes.
	maxWriteBytes = 4096
)

// UART is a serial line that is the machine's console as well. What the machine writes comes to it by Write: the frames in it are
// the protocol's, the text goes on as if there were none.
//
// Nothing is sent before the guest has sent a byte that begins a frame: until its agent has the terminal in hand, the guest's
// kernel would echo all of it as text.
type UART struct {
	input string
	text  func([]byte)

	mu       sync.Mutex
	splitter *serial.Splitter
	// spoke is closed when the guest has spoken.
	spoke     chan struct{}
	hasSpoken bool
}

// NewUART makes a line of the FIFO input and of what Write is given. hasSpoken says that the guest has spoken before.
func NewUART(input string, text func([]byte), hasSpoken bool) *UART {
	uart := &UART{input: input, text: text, splitter: serial.NewSplitter(text), spoke: make(chan struct{}), hasSpoken: hasSpoken}
	if hasSpoken {
		close(uart.spoke)
	}
	return uart
}

// Write takes the machine's output. It never blocks.
func (u *UART) Write(output []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.hasSpoken && bytes.IndexByte(output, frameStart) >= 0 {
		u.hasSpoken = true
		close(u.spoke)
	}
	// It never fails: what does not fit is dropped, and sent again by the guest.
	_, _ = u.splitter.Write(output)
}

// Open waits for the guest's first word.
func (u *UART) Open(stopping <-chan struct{}) (io.ReadWriteCloser, error) {
	select {
	case <-stopping:
		return nil, errStopping
	case <-u.spoke:
	}
	input, err := fifo.Open(u.input)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return &uartLine{uart: u, splitter: u.splitter, input: input}, nil
}

// Coding is Text.
func (u *UART) Coding() serial.Coding { return serial.Text }

// uartLine is the line for one host.
type uartLine struct {
	uart     *UART
	splitter *serial.Splitter
	input    *os.File
}

func (l *uartLine) Read(data []byte) (int, error) { return l.splitter.Read(data) }

// Write waits for as long as the machine does not take its input, at most until Close. What is typed at the console goes into the
// same pipe: it comes between two frames rather than into one.
func (l *uartLine) Write(data []byte) (int, error) {
	written := 0
	for written < len(data) {
		n, err := l.input.Write(nextPiece(data[written:]))
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// nextPiece is what is written at once: whole frames, if there is the end of one within the bound.
func nextPiece(data []byte) []byte {
	if len(data) <= maxWriteBytes {
		return data
	}
	piece := data[:maxWriteBytes]
	if cut := bytes.LastIndexByte(piece, frameStart); cut > 0 {
		return piece[:cut]
	}
	return piece
}

// Close ends this line; the machine's further output is the next one's.
func (l *uartLine) Close() error {
	l.uart.mu.Lock()
	if l.uart.splitter == l.splitter {
		l.uart.splitter = serial.NewSplitter(l.uart.text)
	}
	l.uart.mu.Unlock()
	err := l.splitter.Close()
	if closeErr := l.input.Close(); err == nil {
		err = closeErr
	}
	return err
}
