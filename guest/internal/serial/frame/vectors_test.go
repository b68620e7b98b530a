package frame

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

const vectorFolder = "../../../../protocol/vectors-serial"

// vector is one file of protocol/vectors-serial with codec raw or text; its README.md describes the format.
type vector struct {
	Name       string
	Codec      string
	Input      []segment
	Frames     []expected
	Damaged    uint64
	LastDamage string
	Text       string
}

type segment struct {
	Hex    string
	Text   string
	Repeat *struct {
		Hex   string
		Count int
	}
}

type expected struct {
	Kind      Kind
	FromGuest bool
	Prompt    bool
	Session   uint32
	Number    uint64
	Offset    uint64
	Span      int
	Length    int
	Payload   *string
}

func fromHex(t testing.TB, text string) []byte {
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (v vector) bytes(t testing.TB) []byte {
	var all []byte
	for _, s := range v.Input {
		all = append(all, fromHex(t, s.Hex)...)
		all = append(all, s.Text...)
		if s.Repeat != nil {
			all = append(all, bytes.Repeat(fromHex(t, s.Repeat.Hex), s.Repeat.Count)...)
		}
	}
	return all
}

func readVectors(t testing.TB) map[string]vector {
	files, err := filepath.Glob(filepath.Join(vectorFolder, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	vectors := map[string]vector{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v vector
		if err := json.Unmarshal(content, &v); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if v.Codec != "mux" {
			vectors[filepath.Base(file)] = v
		}
	}
	return vectors
}

// decodeAll feeds the bytes in pieces of a size, and then waits for nothing more.
func decodeAll(d Decoder, input []byte, piece int) []Frame {
	var frames []Frame
	take := func() {
		for f := (Frame{}); d.Next(&f); {
			f.Payload = append([]byte(nil), f.Payload...)
			frames = append(frames, f)
		}
	}
	for len(input) > 0 {
		space := d.Space()
		if len(space) > piece {
			space = space[:piece]
		}
		n := copy(space, input)
		input = input[n:]
		d.Advance(n)
		take()
	}
	for d.Partial() {
		d.GiveUp()
		take()
	}
	return frames
}

func TestDecodersFollowTheVectors(t *testing.T) {
	vectors := readVectors(t)
	if len(vectors) < 25 {
		t.Fatalf("only %d vectors", len(vectors))
	}
	for file, v := range vectors {
		for _, piece := range []int{1, 7, 1 << 20} {
			d := NewDecoder()
			if v.Codec == "text" {
				d = NewTextDecoder()
			}
			input := v.bytes(t)
			frames := decodeAll(d, input, piece)
			if len(frames) != len(v.Frames) {
				t.Errorf("%s by %d: %d frames, want %d", file, piece, len(frames), len(v.Frames))
				continue
			}
			for i, f := range frames {
				want := v.Frames[i]
				header := Header{want.Kind, want.FromGuest, want.Prompt, want.Session, want.Number, want.Offset, want.Span, want.Length}
				if f.Header != header || want.Payload != nil && !bytes.Equal(f.Payload, fromHex(t, *want.Payload)) {
					t.Errorf("%s by %d: frame %+v, want %+v", file, piece, f.Header, header)
				}
			}
			last := ""
			if d.Last() != nil {
				last = d.Last().Name
			}
			if d.Damaged() != v.Damaged || last != v.LastDamage {
				t.Errorf("%s by %d: %d damaged, the last %q; want %d, %q", file, piece, d.Damaged(), last, v.Damaged, v.LastDamage)
			}
			if v.Codec == "text" {
				if text := textOf(input, piece); text != v.Text {
					t.Errorf("%s by %d: text %q, want %q", file, piece, text, v.Text)
				}
			}
		}
	}
}

// textOf is the console's share of a mixed line.
func textOf(input []byte, piece int) string {
	var s TextScanner
	var text []byte
	for len(input) > 0 {
		part := input
		if len(part) > piece {
			part = part[:piece]
		}
		input = input[len(part):]
		for len(part) > 0 {
			kind, n := s.Next(part)
			if kind == PartText {
				text = append(text, part[:n]...)
			}
			part = part[n:]
		}
	}
	return string(text)
}

func FuzzDecoders(f *testing.F) {
	for _, v := range readVectors(f) {
		if input := v.bytes(f); len(input) < 2000 {
			f.Add(input)
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		for _, d := range []Decoder{NewDecoder(), NewTextDecoder()} {
			whole := decodeAll(d, input, 1<<20)
			for _, f := range whole {
				if f.Length > MaxPayload || len(f.Payload) != f.Length || f.Span > MaxSpan {
					t.Fatalf("frame out of bounds: %+v", f.Header)
				}
			}
		}
		if a, b := len(decodeAll(NewDecoder(), input, 1)), len(decodeAll(NewDecoder(), input, 1<<20)); a != b {
			t.Fatalf("%d frames byte by byte, %d at once", a, b)
		}
	})
}
