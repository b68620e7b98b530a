package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestEveryPathIsDescribed(t *testing.T) {
	root := t.TempDir()
	syscall.Umask(0o022)
	must(t, os.Chmod(root, 0o755))
	must(t, os.MkdirAll(filepath.Join(root, "a"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "a/file"), []byte("abc"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "a.file"), nil, 0o600))
	must(t, syscall.Chmod(filepath.Join(root, "a.file"), 0o4755))
	must(t, os.Link(filepath.Join(root, "a/file"), filepath.Join(root, "a/again")))
	must(t, os.Link(filepath.Join(root, "a/file"), filepath.Join(root, "z")))
	must(t, os.Symlink("no/such\nplace", filepath.Join(root, "link")))
	must(t, syscall.Mkfifo(filepath.Join(root, "fifo"), 0o640))
	must(t, os.WriteFile(filepath.Join(root, "\xff \t\\\"é"), nil, 0o644))

	lines := digest(t, options{root: root})

	paths := []string{".", "a", "a.file", "a/again", "a/file", "fifo", "link", "z", `\xff \x09\x5c"\xc3\xa9`}
	if got := pathsOf(lines); strings.Join(got, "\n") != strings.Join(paths, "\n") {
		t.Fatalf("paths are %q, not %q", got, paths)
	}
	expect := map[string]line{
		".":       {Type: "folder", Mode: "0755"},
		"a.file":  {Type: "file", Mode: "4755", Links: 1, Size: new(int64), Digest: "ef46db3751d8e999"}, // XXH64 of nothing
		"a/again": {Type: "file", Mode: "0644", Links: 3, Size: size(3), Digest: "44bc2cf5ad770999", SameAs: "a/again"},
		"a/file":  {Type: "file", Mode: "0644", Links: 3, Size: size(3), Digest: "44bc2cf5ad770999", SameAs: "a/again"},
		"fifo":    {Type: "fifo", Mode: "0640", Links: 1},
		"link":    {Type: "symlink", Mode: "0777", Links: 1, Target: `no/such\x0aplace`},
		"z":       {Type: "file", Mode: "0644", Links: 3, Size: size(3), Digest: "44bc2cf5ad770999", SameAs: "a/again"},
	}
	for _, each := range lines {
		want, isExpected := expect[each.Path]
		if !isExpected {
			continue
		}
		want.Path, want.UID, want.GID = each.Path, uint32(os.Getuid()), each.GID
		if got, want := text(t, each), text(t, want); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestXattrsAreSortedAndBinary(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	err := syscall.Setxattr(file, "user.z", []byte("\x00\xff"), 0)
	if err == syscall.ENOTSUP {
		t.Skip("the file system of the temporary folder has no xattrs")
	}
	must(t, err)
	must(t, syscall.Setxattr(file, "user.empty", nil, 0))
	lines := digest(t, options{root: root})
	if got := text(t, lines[1]); !strings.HasSuffix(got, `"xattrs":{"user.empty":"","user.z":"00ff"}}`) {
		t.Fatalf("got %s", got)
	}
}

func TestSkippedPathsAreLeftOutWithAllBelow(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "a/b/c"), 0o755))
	must(t, os.MkdirAll(filepath.Join(root, "a/bb"), 0o755))
	skipped := paths{}
	must(t, skipped.Set("/a/b/"))
	if got := strings.Join(pathsOf(digest(t, options{root: root, skipped: skipped})), " "); got != ". a a/bb" {
		t.Fatalf("got %s", got)
	}
}

func TestMountPointsAreLeftOut(t *testing.T) {
	var told []string
	found, err := findNodes(options{
		root:           "/",
		oneFileSystem:  true,
		skipped:        skipAllBut(t, "/", "proc"),
		tellMountPoint: func(name string) { told = append(told, name) },
	})
	must(t, err)
	if len(found) != 1 || strings.Join(told, " ") != "proc" {
		t.Fatalf("found %v, told %v", found, told)
	}
}

func TestDeviceNumbersHaveAllTheirBits(t *testing.T) {
	// makedev(0xabcde, 0x12345) of glibc
	if major, minor := splitDevice(0x000ab000_123cde45); major != 0xabcde || minor != 0x12345 {
		t.Fatalf("got %x:%x", major, minor)
	}
}

func digest(t *testing.T, opts options) []line {
	t.Helper()
	var out bytes.Buffer
	must(t, printTree(&out, opts))
	var lines []line
	for _, each := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		var parsed line
		must(t, json.Unmarshal([]byte(each), &parsed))
		lines = append(lines, parsed)
	}
	return lines
}

func pathsOf(lines []line) []string {
	var names []string
	for _, each := range lines {
		names = append(names, each.Path)
	}
	return names
}

func skipAllBut(t *testing.T, root, kept string) map[string]bool {
	t.Helper()
	entries, err := os.ReadDir(root)
	must(t, err)
	skipped := map[string]bool{}
	for _, entry := range entries {
		skipped[entry.Name()] = entry.Name() != kept
	}
	return skipped
}

func text(t *testing.T, each line) string {
	t.Helper()
	encoded, err := json.Marshal(each)
	must(t, err)
	return string(encoded)
}

func size(bytes int64) *int64 { return &bytes }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
