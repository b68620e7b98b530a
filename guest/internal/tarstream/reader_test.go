package tarstream

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"reflect"
	"strings"
	"testing"
)

func streamOf(t *testing.T, entries []*Entry) []byte {
	t.Helper()
	var stream bytes.Buffer
	w := NewWriter(&stream)
	for _, entry := range entries {
		if err := w.Begin(entry); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(entry.Stored()))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return stream.Bytes()
}

var samples = []*Entry{
	{Kind: Folder, Path: ".", Mode: 0o755},
	{Kind: File, Path: "a", Mode: 0o4644, UID: 1000, GID: 1 << 31, Seconds: 1e9, Nanoseconds: 5, Size: 1000},
	{Kind: File, Path: strings.Repeat("long/", 60) + "\xff", Mode: 0o600, Seconds: -2, Nanoseconds: 750000000, Size: 0},
	{Kind: File, Path: "dir/sparse", Mode: 0o600, Size: 1 << 40, Extents: []Extent{{0, 5}, {1 << 30, 700}, {1<<40 - 3, 3}}},
	{Kind: File, Path: "hole", Mode: 0o600, Size: 1 << 30, Extents: []Extent{}},
	{Kind: Symlink, Path: "l", Target: strings.Repeat("t", 500), Mode: 0o777},
	{Kind: HardLink, Path: "h", Target: "a", Mode: 0o644},
	{Kind: CharDevice, Path: "null", Mode: 0o666, Major: 1, Minor: 3},
	{Kind: File, Path: "x", Mode: 0o644, Xattrs: map[string]string{"user.a": "v\x00\n=", "user.b": ""}},
}

// oneByte gives a byte at a time.
type oneByte struct{ from io.Reader }

func (o oneByte) Read(data []byte) (int, error) {
	if len(data) > 1 {
		data = data[:1]
	}
	return o.from.Read(data)
}

func TestWhatWasWrittenIsRead(t *testing.T) {
	stream := streamOf(t, samples)
	for _, source := range []io.Reader{bytes.NewReader(stream), oneByte{bytes.NewReader(stream)}} {
		r := NewReader(source)
		for _, want := range samples {
			got, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got %+v, wrote %+v", got, want)
			}
			if content, err := io.ReadAll(r); err != nil || int64(len(content)) != want.Stored() {
				t.Fatalf("%d bytes of %s: %v", len(content), want.Path, err)
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatalf("after the end: %v", err)
		}
	}
}

func TestDamageIsAnErrorAndNeverAPanic(t *testing.T) {
	stream := streamOf(t, samples)
	random := rand.New(rand.NewSource(1))
	for round := 0; round < 20000; round++ {
		damaged := append([]byte{}, stream...)
		for count := 1 + random.Intn(3); count > 0; count-- {
			damaged[random.Intn(len(damaged))] ^= byte(1 + random.Intn(255))
		}
		if random.Intn(3) == 0 {
			damaged = damaged[:random.Intn(len(damaged))]
		}
		r := NewReader(bytes.NewReader(damaged))
		for {
			entry, err := r.Next()
			if err != nil {
				if err != io.EOF && !errors.Is(err, ErrInvalid) {
					t.Fatalf("round %d: %v", round, err)
				}
				break
			}
			end := int64(0)
			for _, extent := range entry.Extents {
				if extent.Offset < end || extent.Length <= 0 || extent.Offset+extent.Length > entry.Size {
					t.Fatalf("round %d: extents %v of %d bytes", round, entry.Extents, entry.Size)
				}
				end = extent.Offset + extent.Length
			}
		}
	}
}

func TestManyExtentsAreJoinedAtTheSmallestHoles(t *testing.T) {
	var extents []Extent
	for i := int64(0); i < 50000; i++ {
		extents = append(extents, Extent{i * 8192, 4096})
	}
	extents = append(extents, Extent{1 << 40, 10})
	joined := Coalesce(extents)
	if len(joined) != 2 || joined[0] != (Extent{0, 49999*8192 + 4096}) || joined[1] != (Extent{1 << 40, 10}) {
		t.Fatalf("%d extents", len(joined))
	}
}
