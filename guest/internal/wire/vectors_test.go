package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"testing/iotest"
)

const (
	vectorFolder = "../../../protocol/vectors"
	leastVectors = 60
)

// vector is one file of protocol/vectors; its README.md describes the format.
type vector struct {
	Name      string
	Direction string
	Input     []segment
	Expect    []expected
	Error     *string
}

type segment struct {
	Hex    *string
	Text   *string
	U8     *uint8
	U32    *uint32
	Repeat *struct {
		Hex   string
		Count int
	}
	Frame *struct {
		Kind  uint8
		Text  string
		Parts []segment
	}
}

type expected struct {
	Kind    string
	Message map[string]interface{}
	Ignore  []string
	Length  int
	Hex     *string
}

func (s segment) bytes(t testing.TB) []byte {
	switch {
	case s.Hex != nil:
		return fromHex(t, *s.Hex)
	case s.Text != nil:
		return []byte(*s.Text)
	case s.U8 != nil:
		return []byte{*s.U8}
	case s.U32 != nil:
		var number [4]byte
		binary.BigEndian.PutUint32(number[:], *s.U32)
		return number[:]
	case s.Repeat != nil:
		return bytes.Repeat(fromHex(t, s.Repeat.Hex), s.Repeat.Count)
	case s.Frame != nil:
		payload := []byte(s.Frame.Text)
		for _, part := range s.Frame.Parts {
			payload = append(payload, part.bytes(t)...)
		}
		frame := make([]byte, HeaderBytes)
		PutHeader(frame, Kind(s.Frame.Kind), len(payload))
		return append(frame, payload...)
	}
	t.Fatal("a segment of no known kind")
	return nil
}

func fromHex(t testing.TB, text string) []byte {
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func readVectors(t testing.TB) map[string]vector {
	files, err := filepath.Glob(filepath.Join(vectorFolder, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	vectors := map[string]vector{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v vector
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		vectors[filepath.Base(file)] = v
	}
	return vectors
}

func (v vector) stream(t testing.TB) []byte {
	var stream []byte
	for _, s := range v.Input {
		stream = append(stream, s.bytes(t)...)
	}
	return stream
}

func (v vector) direction() Direction {
	if v.Direction == "to-host" {
		return ToHost
	}
	return ToGuest
}

func TestEveryVectorDecodesAsItSays(t *testing.T) {
	vectors := readVectors(t)
	t.Logf("%d vectors", len(vectors))
	if len(vectors) < leastVectors {
		t.Fatalf("%d vectors, at least %d must be there", len(vectors), leastVectors)
	}
	for file, v := range vectors {
		v := v
		t.Run(file, func(t *testing.T) {
			stream := v.stream(t)
			t.Run("whole", func(t *testing.T) { v.run(t, bytes.NewReader(stream)) })
			t.Run("byte by byte", func(t *testing.T) { v.run(t, iotest.OneByteReader(bytes.NewReader(stream))) })
			t.Run("error with the last bytes", func(t *testing.T) { v.run(t, iotest.DataErrReader(bytes.NewReader(stream))) })
		})
	}
}

func (v vector) run(t *testing.T, src io.Reader) {
	decoder := NewDecoder(src, v.direction())
	for i := 0; ; i++ {
		kind, payload, message, err := nextWhole(decoder)
		if err != nil {
			if i != len(v.Expect) {
				t.Fatalf("%d frames, then %v, %d were meant", i, err, len(v.Expect))
			}
			v.checkEnd(t, err)
			return
		}
		if i >= len(v.Expect) {
			t.Fatalf("frame %d of kind %d is one too many", i, kind)
		}
		v.Expect[i].check(t, kind, payload, message)
	}
}

// nextWhole puts the parts of a large frame together.
func nextWhole(d *Decoder) (Kind, []byte, Message, error) {
	var payload []byte
	for {
		frame, err := d.Next()
		if err != nil {
			return 0, nil, Message{}, err
		}
		payload = append(payload, frame.Payload...)
		if frame.Rest == 0 {
			return frame.Kind, payload, frame.Message, nil
		}
	}
}

func (v vector) checkEnd(t *testing.T, err error) {
	var violation *Violation
	switch {
	case v.Error == nil && err != io.EOF:
		t.Fatalf("%v, a good end was meant", err)
	case v.Error == nil:
	case !errors.As(err, &violation):
		t.Fatalf("%v, %s was meant", err, *v.Error)
	case violation.Name != *v.Error:
		t.Fatalf("%v, %s was meant", violation, *v.Error)
	}
}

func (e expected) check(t *testing.T, kind Kind, payload []byte, message Message) {
	names := map[Kind]string{KindMessage: "message", KindData: "data", KindStdout: "stdout", KindStderr: "stderr"}
	if names[kind] != e.Kind {
		t.Fatalf("a frame of kind %s, %s was meant", names[kind], e.Kind)
	}
	if kind != KindMessage {
		if len(payload) != e.Length || e.Hex != nil && !bytes.Equal(payload, fromHex(t, *e.Hex)) {
			t.Fatalf("%d bytes of payload, other than what was meant", len(payload))
		}
		return
	}
	fields := map[string]interface{}{}
	for name, raw := range message.Fields {
		var value interface{}
		if err := json.Unmarshal(raw, &value); err != nil {
			t.Fatal(err)
		}
		fields[name] = value
	}
	for _, name := range e.Ignore {
		if _, sent := fields[name]; !sent {
			t.Fatalf("no field %s", name)
		}
		delete(fields, name)
	}
	if !reflect.DeepEqual(fields, e.Message) {
		t.Fatalf("message %v, %v was meant", fields, e.Message)
	}
}

func FuzzDecoder(f *testing.F) {
	for _, v := range readVectors(f) {
		if stream := v.stream(f); len(stream) < 1<<16 {
			f.Add(stream, v.Direction == "to-host")
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte, toHost bool) {
		direction := ToGuest
		if toHost {
			direction = ToHost
		}
		// Whatever comes, both ways of reading it see the same, and the codec never fails in another way than by name.
		whole := transcript(t, NewDecoder(bytes.NewReader(stream), direction))
		piecemeal := transcript(t, NewDecoder(iotest.OneByteReader(bytes.NewReader(stream)), direction))
		if !reflect.DeepEqual(whole, piecemeal) {
			t.Fatalf("whole: %v\nbyte by byte: %v", whole, piecemeal)
		}
	})
}

func transcript(t *testing.T, d *Decoder) []string {
	var seen []string
	for {
		kind, payload, message, err := nextWhole(d)
		var violation *Violation
		switch {
		case err == io.EOF:
			return append(seen, "end")
		case errors.As(err, &violation):
			return append(seen, violation.Name)
		case err != nil:
			t.Fatalf("an error without a name: %v", err)
		}
		seen = append(seen, string(rune(kind)), string(payload), message.Type)
	}
}
