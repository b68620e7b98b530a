package serial

import (
	"bytes"
	"testing"

	"bandsox.dev/guest/internal/serial/frame"
)

// TestShredsOfTextAreHandedOnTogether has a console that begins a frame behind every letter.
func TestShredsOfTextAreHandedOnTogether(t *testing.T) {
	var got []byte
	calls := 0
	splitter := NewSplitter(func(text []byte) {
		calls++
		got = append(got, text...)
	})
	defer splitter.Close()
	for i := 0; i < 2; i++ {
		if _, err := splitter.Write(bytes.Repeat([]byte{'a', frame.RS}, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if calls != 2 || !bytes.Equal(got, bytes.Repeat([]byte("a"), 2000)) {
		t.Errorf("%d bytes of text came in %d calls", len(got), calls)
	}
}
