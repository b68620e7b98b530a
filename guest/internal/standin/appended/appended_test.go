package appended

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func written(t *testing.T, parts ...string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(strings.Join(parts, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func TestFlagsBehindAProgramAreFound(t *testing.T) {
	line, err := Line([]string{"--stand-in-fault", "crash-at=PUT /vsock"})
	if err != nil {
		t.Fatal(err)
	}
	for name, program := range map[string]string{"short": "ELF", "long": strings.Repeat("x", 3*maxBytes)} {
		flags, err := read(written(t, program, string(line)))
		if err != nil || len(flags) != 2 || flags[1] != "crash-at=PUT /vsock" {
			t.Errorf("%s: %q, %v", name, flags, err)
		}
	}
}

func TestAProgramWithoutFlagsHasNone(t *testing.T) {
	for _, program := range []string{"", "ELF", strings.Repeat("x", 3*maxBytes)} {
		if flags, err := read(written(t, program)); err != nil || flags != nil {
			t.Errorf("%d bytes: %q, %v", len(program), flags, err)
		}
	}
	if flags, err := read(written(t, "ELF", marker, "[broken")); err == nil {
		t.Errorf("broken flags: %q", flags)
	}
}
