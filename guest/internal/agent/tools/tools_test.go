package tools

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"bandsox.dev/guest/internal/agent/failure"
)

func TestAnUnknownToolIsNotFound(t *testing.T) {
	for _, words := range [][]string{{"rm"}, {""}, nil} {
		_, _, err := Program(words)
		var known *failure.Error
		if !errors.As(err, &known) || known.Code != failure.CommandNotFound {
			t.Fatalf("%q: %v", words, err)
		}
	}
}

func TestTheBinaryIsExecutedThroughItsDescriptor(t *testing.T) {
	path, argv, err := Program([]string{"pack", "/x"})
	if err != nil || filepath.Dir(path) != "/proc/self/fd" || len(argv) != 4 || argv[1] != Word {
		t.Fatalf("%s %q %v", path, argv, err)
	}
}

func TestWhereProcIsHiddenACopyIsExecutedAndKept(t *testing.T) {
	before := folders
	defer func() { folders = before }()
	folders = []string{"/no/such/folder", t.TempDir()}
	first, err := locate("/no/proc")
	if err != nil {
		t.Fatal(err)
	}
	own, _ := os.ReadFile("/proc/self/exe")
	if copied, err := os.ReadFile(first); err != nil || string(copied) != string(own) {
		t.Fatalf("the copy is another: %v", err)
	}
	if again, err := locate("/no/proc"); err != nil || again != first {
		t.Fatalf("%s, %v: it was copied again", again, err)
	}
	if err := os.WriteFile(first, []byte("tampered"), 0o755); err != nil {
		t.Fatal(err)
	}
	if again, err := locate("/no/proc"); err != nil || again == first {
		t.Fatalf("%s, %v: a copy that somebody changed is executed", again, err)
	}
	folders = []string{"/no/such/folder"}
	binary.made = nil
	if _, err := locate("/no/proc"); err == nil {
		t.Fatal("there is nothing to execute")
	}
}
