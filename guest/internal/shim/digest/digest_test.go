package digest

import (
	"os"
	"path/filepath"
	"testing"
)

const size = 5*blockBytes + 1000

// write makes a file of that size, which holds data in some places, and holes elsewhere.
func write(t *testing.T, name string, data map[int64][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	file, err := os.Create(path)
	if err == nil {
		err = file.Truncate(size)
	}
	for offset, piece := range data {
		if err == nil {
			_, err = file.WriteAt(piece, offset)
		}
	}
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func sumOf(t *testing.T, path string) Sum {
	t.Helper()
	sum, err := Of(path)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestHolesAndZerosAreTheSame(t *testing.T) {
	data := map[int64][]byte{100: []byte("memory"), 3 * blockBytes: []byte("more")}
	sparse := sumOf(t, write(t, "sparse", data))
	data[2*blockBytes] = make([]byte, blockBytes)
	data[4*blockBytes] = make([]byte, blockBytes+1000)
	full := sumOf(t, write(t, "full", data))
	if sparse.Digest != full.Digest || sparse.SizeBytes != size {
		t.Errorf("%+v and %+v", sparse, full)
	}
	if sparse.AllocatedBytes >= full.AllocatedBytes {
		t.Errorf("a sparse file takes %d bytes, and one without holes %d", sparse.AllocatedBytes, full.AllocatedBytes)
	}
}

func TestEveryByteCounts(t *testing.T) {
	path := write(t, "file", map[int64][]byte{blockBytes - 3: []byte("across"), size - 1: {1}})
	whole := sumOf(t, path)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{whole.Digest: -1}
	for _, at := range []int{0, blockBytes - 1, blockBytes, 2 * blockBytes, 4*blockBytes + 17, size - 1} {
		changed := append([]byte(nil), content...)
		changed[at] ^= 0x40
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		sum := sumOf(t, path)
		if before, known := seen[sum.Digest]; known {
			t.Errorf("a change at %d is as one at %d", at, before)
		}
		seen[sum.Digest] = at
	}
	if err := os.WriteFile(path, append(content, 0), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, known := seen[sumOf(t, path).Digest]; known {
		t.Error("one more zero at the end makes no difference")
	}
}

func TestOnlyPlainFilesAreRead(t *testing.T) {
	folder := t.TempDir()
	link := filepath.Join(folder, "link")
	if err := os.Symlink(write(t, "file", nil), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{folder, link, filepath.Join(folder, "missing")} {
		if sum, err := Of(path); err == nil {
			t.Errorf("%s: %+v", path, sum)
		}
	}
}
