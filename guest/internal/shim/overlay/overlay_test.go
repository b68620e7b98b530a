package overlay

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const block = 64 << 10

// sparse makes a file of some blocks, of which those named have a byte all over.
func sparse(t *testing.T, name string, blocks int, data map[int]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(int64(blocks) * block); err != nil {
		t.Fatal(err)
	}
	for at, value := range data {
		if _, err := file.WriteAt(bytes.Repeat([]byte{value}, block), int64(at)*block); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestChangesReplaceWhatWasThereAndHolesDoNot(t *testing.T) {
	base := sparse(t, "base", 6, map[int]byte{0: 'a', 1: 'b', 3: 'c', 5: 'd'})
	// Zeros that were written are a change as well.
	changes := sparse(t, "changes", 6, map[int]byte{1: 'B', 2: 'N', 5: 0})
	if err := Apply(base, changes); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	var firsts strings.Builder
	for at := 0; at < len(got); at += block {
		if !bytes.Equal(got[at:at+block], bytes.Repeat(got[at:at+1], block)) {
			t.Errorf("block %d is mixed", at/block)
		}
		firsts.WriteByte(got[at])
	}
	if firsts.String() != "aBNc\x00\x00" {
		t.Errorf("it has become %q", firsts.String())
	}
}

func TestNothingIsWrittenOverAFileOfAnotherSizeOrKind(t *testing.T) {
	base := sparse(t, "base", 2, map[int]byte{0: 'a', 1: 'a'})
	larger := sparse(t, "larger", 3, map[int]byte{0: 'x'})
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(sparse(t, "same", 2, map[int]byte{0: 'x'}), link); err != nil {
		t.Fatal(err)
	}
	for _, changes := range []string{larger, link, t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if err := Apply(base, changes); err == nil {
			t.Errorf("%s was taken", changes)
		}
	}
	if got, err := os.ReadFile(base); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{'a'}, 2*block)) {
		t.Errorf("it was written to: %v", err)
	}
}

func TestNoChangesAreNone(t *testing.T) {
	base := sparse(t, "base", 2, map[int]byte{1: 'a'})
	if err := Apply(base, sparse(t, "changes", 2, nil)); err != nil {
		t.Fatal(err)
	}
}
