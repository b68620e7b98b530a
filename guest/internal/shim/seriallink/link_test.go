package seriallink

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/serial"
	"bandsox.dev/guest/internal/shim/fifo"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// noLine is a line that is never there.
type noLine struct{}

func (noLine) Open(<-chan struct{}) (io.ReadWriteCloser, error) { return nil, syscall.ECONNREFUSED }
func (noLine) Coding() serial.Coding                            { return serial.Raw }

func TestDialIsRefusedInTheEnd(t *testing.T) {
	link := Start(noLine{}, false, func(err error) {
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("reported: %v", err)
		}
	})
	link.limit = 10 * time.Millisecond
	if conn, err := link.Dial(9000); err == nil || conn != nil {
		t.Errorf("got %v, %v", conn, err)
	}
	if now := link.Statistics(); now.Up {
		t.Errorf("it is up: %+v", now)
	}
	if err := link.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsWhoWaitsForTheLine(t *testing.T) {
	link := Start(noLine{}, true, func(error) {})
	ended := make(chan error)
	go func() {
		_, err := link.Dial(9000)
		ended <- err
	}()
	link.Hold()
	link.Resume()
	if err := link.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, errStopping) {
		t.Errorf("ended by %v", err)
	}
}

// uart is one with its FIFO, which has spoken unless the test says so.
func uart(t *testing.T, hasSpoken bool) (line *UART, input string, text *bytes.Buffer) {
	t.Helper()
	input = filepath.Join(t.TempDir(), "console.in")
	if err := fifo.Make(input); err != nil {
		t.Fatal(err)
	}
	text = &bytes.Buffer{}
	return NewUART(input, func(more []byte) { text.Write(more) }, hasSpoken), input, text
}

func TestUARTOpensWhenTheGuestHasSpoken(t *testing.T) {
	line, _, text := uart(t, false)
	opened := make(chan io.ReadWriteCloser)
	go func() {
		got, err := line.Open(nil)
		if err != nil {
			t.Error(err)
		}
		opened <- got
	}()
	line.Write([]byte("booting: grüße\n"))
	select {
	case <-opened:
		t.Error("it opened before")
	case <-time.After(20 * time.Millisecond):
	}
	line.Write([]byte("\x1eready\n"))
	if err := (<-opened).Close(); err != nil {
		t.Error(err)
	}
	if text.String() != "booting: grüße\nready\n" {
		t.Errorf("the text is %q", text)
	}
	stopping := make(chan struct{})
	close(stopping)
	silent, _, _ := uart(t, false)
	if _, err := silent.Open(stopping); !errors.Is(err, errStopping) {
		t.Errorf("opened for nobody: %v", err)
	}
}

func TestFramesGoIntoThePipeWholeAndAFullPipeHoldsUpNobodyForEver(t *testing.T) {
	line, input, _ := uart(t, true)
	out, err := line.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := os.OpenFile(input, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close() // opened for reading: closing loses nothing
	frame := append([]byte{frameStart}, bytes.Repeat([]byte{0x80}, 1199)...)
	sent := bytes.Repeat(frame, 5)
	if n, err := out.Write(sent); n != len(sent) || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if err := guest.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(guest, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("what came out is not what went in: %v", err)
	}
	written := make(chan error)
	go func() {
		_, err := out.Write(make([]byte, 1<<20))
		written <- err
	}()
	select {
	case err := <-written:
		t.Fatalf("a pipe that nobody reads took all: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	if err := <-written; err == nil {
		t.Error("all was written after the end")
	}
}

func TestPiecesEndBetweenFrames(t *testing.T) {
	frame := append([]byte{frameStart}, bytes.Repeat([]byte{0x80}, 1199)...)
	var sizes []int
	for rest := bytes.Repeat(frame, 5); len(rest) > 0; {
		piece := nextPiece(rest)
		sizes = append(sizes, len(piece))
		rest = rest[len(piece):]
	}
	if len(sizes) != 2 || sizes[0] != 3600 || sizes[1] != 2400 {
		t.Errorf("the pieces have %v bytes", sizes)
	}
	if piece := nextPiece(bytes.Repeat([]byte{0x80}, 5000)); len(piece) != maxWriteBytes {
		t.Errorf("a frame that is too long goes in pieces of %d", len(piece))
	}
	if piece := nextPiece(append(append([]byte{}, frame[:4]...), bytes.Repeat(frame, 4)[:4092]...)); len(piece) == 0 || len(piece) > maxWriteBytes {
		t.Errorf("a piece of %d", len(piece))
	}
}
