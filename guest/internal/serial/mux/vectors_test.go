package mux

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// vector is one file of protocol/vectors-serial with codec mux; its README.md describes the format.
type vector struct {
	Codec string
	To    string
	Input []struct {
		Hex    string
		Repeat *struct {
			Hex   string
			Count int
		}
	}
	Messages []found
	Error    *string
}

type found struct {
	Kind   kind
	Stream uint32
	Length int
	Word   uint32
}

// collector notes what a parser finds, and that each data message brings as many bytes as it says.
type collector struct {
	messages []found
	bytes    int
}

func (c *collector) message(h header, word uint32) error {
	if h.kind != open && h.kind != credit {
		word = 0
	}
	c.messages = append(c.messages, found{h.kind, h.stream, h.length, word})
	return nil
}

func (c *collector) content(_ uint32, p []byte) error {
	c.bytes += len(p)
	return nil
}

func readVectors(t testing.TB) map[string]vector {
	files, err := filepath.Glob("../../../../protocol/vectors-serial/mux-*.json")
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
		vectors[filepath.Base(file)] = v
	}
	return vectors
}

func (v vector) bytes(t testing.TB) []byte {
	var all []byte
	add := func(text string, count int) {
		data, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, bytes.Repeat(data, count)...)
	}
	for _, s := range v.Input {
		add(s.Hex, 1)
		if s.Repeat != nil {
			add(s.Repeat.Hex, s.Repeat.Count)
		}
	}
	return all
}

// parseAll feeds the bytes in pieces of a size.
func parseAll(input []byte, piece int, toHost bool) (*collector, error) {
	var c collector
	var p parser
	for len(input) > 0 {
		n := piece
		if n > len(input) {
			n = len(input)
		}
		if err := p.feed(input[:n], toHost, &c); err != nil {
			return &c, err
		}
		input = input[n:]
	}
	return &c, nil
}

func TestTheParserFollowsTheVectors(t *testing.T) {
	vectors := readVectors(t)
	if len(vectors) < 14 {
		t.Fatalf("only %d vectors", len(vectors))
	}
	for file, v := range vectors {
		for _, piece := range []int{1, 5, 1 << 20} {
			c, err := parseAll(v.bytes(t), piece, v.To == "host")
			name := ""
			if violation, ok := err.(*Violation); ok {
				name = violation.Name
			}
			if v.Error == nil && err != nil || v.Error != nil && name != *v.Error {
				t.Errorf("%s by %d: error %v", file, piece, err)
			}
			if len(c.messages) != len(v.Messages) {
				t.Errorf("%s by %d: %+v, want %+v", file, piece, c.messages, v.Messages)
				continue
			}
			for i, m := range c.messages {
				if m != v.Messages[i] {
					t.Errorf("%s by %d: %+v, want %+v", file, piece, m, v.Messages[i])
				}
			}
		}
	}
}

func FuzzParser(f *testing.F) {
	for _, v := range readVectors(f) {
		if input := v.bytes(f); len(input) < 2000 {
			f.Add(input, v.To == "host")
		}
	}
	f.Fuzz(func(t *testing.T, input []byte, toHost bool) {
		whole, wholeErr := parseAll(input, 1<<20, toHost)
		single, singleErr := parseAll(input, 1, toHost)
		if len(whole.messages) != len(single.messages) || whole.bytes != single.bytes || (wholeErr == nil) != (singleErr == nil) {
			t.Fatalf("%d messages at once (%v), %d byte by byte (%v)", len(whole.messages), wholeErr, len(single.messages), singleErr)
		}
	})
}
