package pack

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"

	"bandsox.dev/guest/internal/tarstream"
)

// tool runs one, and gives what it wrote and said.
func tool(t *testing.T, stdin []byte, words ...string) (stdout []byte, said map[string]interface{}, status int) {
	t.Helper()
	var out, line bytes.Buffer
	status = Main(words, bytes.NewReader(stdin), &out, &line)
	if err := json.Unmarshal(line.Bytes(), &said); err != nil || strings.Count(line.String(), "\n") != 1 {
		t.Fatalf("%v: said %q: %v", words, line.String(), err)
	}
	return out.Bytes(), said, status
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func packed(t *testing.T, words ...string) ([]byte, map[string]interface{}) {
	t.Helper()
	stream, said, status := tool(t, nil, append([]string{"pack"}, words...)...)
	if status != 0 {
		t.Fatalf("pack %v: %v", words, said)
	}
	return stream, said
}

func checked(stream []byte, said map[string]interface{}) []byte {
	return append(append([]byte{}, stream...), "xxh64 "+said["xxh64"].(string)+"\n"...)
}

// describe lists a tree by another program.
func describe(t *testing.T, folder string) []string {
	t.Helper()
	command := exec.Command("find", ".", "-printf", `%P\t%y\t%m\t%U:%G\t%n\t%l\t%T@\0`)
	command.Dir = folder
	text, err := command.Output()
	must(t, err)
	lines := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	for i, line := range lines {
		fields := strings.Split(line, "\t")
		if fields[1] == "d" {
			fields[4] = ""
		}
		lines[i] = strings.Join(fields, "\t")
	}
	sort.Strings(lines)
	return lines
}

func nastyTree(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "tree")
	in := func(name string) string { return filepath.Join(folder, name) }
	long := filepath.Join("y"+strings.Repeat("y", 150), strings.Repeat("z", 200))
	must(t, os.MkdirAll(in("a/empty"), 0o755), os.MkdirAll(in(long), 0o700))
	must(t,
		os.WriteFile(in("a/file"), bytes.Repeat([]byte("content"), 100000), 0o644),
		os.WriteFile(in("odd-\xff\xfe"), []byte("x"), 0o600),
		os.WriteFile(in("new\nline"), nil, 0o644),
		os.WriteFile(in(strings.Repeat("x", 255)), []byte("long"), 0o644),
		os.WriteFile(in(long+"/ümläut"), []byte("deep"), 0o644),
		os.Link(in("a/file"), in("second")), os.Symlink("/etc/passwd", in("link")), os.Symlink(strings.Repeat("t", 300), in("to-long")),
		syscall.Mkfifo(in("fifo"), 0o620), os.Chmod(in("new\nline"), os.ModeSetuid|0o755),
	)
	sparse, err := os.Create(in("sparse"))
	must(t, err)
	for _, at := range []int64{1 << 20, 1 << 30, 1 << 35} {
		_, err := sparse.WriteAt([]byte("data"), at)
		must(t, err)
	}
	must(t, sparse.Truncate(1<<36), sparse.Close())
	must(t, os.Truncate(createEmpty(t, in("hole")), 1<<30))
	fd, err := syscall.Open(in("a/file"), syscall.O_RDONLY, 0)
	must(t, err)
	if err := writeXattr(fd, "user.kept", "va\x00lue\n"); err != nil && err != syscall.ENOTSUP {
		t.Fatal(err)
	}
	syscall.Close(fd)
	for name, seconds := range map[string]int64{"a/file": 1e9, "new\nline": -86401, "a/empty": 4e9, "a": 123456789} {
		must(t, setTimeAt(-100, in(name), seconds, 123456789))
	}
	return folder
}

func createEmpty(t *testing.T, path string) string {
	t.Helper()
	must(t, os.WriteFile(path, nil, 0o644))
	return path
}

func expectSame(t *testing.T, got, want []string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("got\n%q\nwant\n%q", got, want)
	}
}

func TestATreeIsTheSameOnTheOtherSide(t *testing.T) {
	source := nastyTree(t)
	target := filepath.Join(t.TempDir(), "copy")
	stream, said := packed(t, source)
	_, took, status := tool(t, checked(stream, said), "unpack", "--checked", "--to", target)
	if status != 0 || fmt.Sprint(took) != fmt.Sprint(said) {
		t.Fatalf("packed %v, unpacked %v", said, took)
	}
	expectSame(t, describe(t, target), describe(t, source))
	var stat syscall.Stat_t
	must(t, syscall.Stat(filepath.Join(target, "sparse"), &stat))
	if stat.Size != 1<<36 || stat.Blocks*512 > 1<<20 {
		t.Fatalf("the sparse file has %d bytes in %d blocks", stat.Size, stat.Blocks)
	}
	part := make([]byte, 4)
	file, err := os.Open(filepath.Join(target, "sparse"))
	must(t, err)
	defer file.Close()
	if _, err := file.ReadAt(part, 1<<35); err != nil || string(part) != "data" {
		t.Fatalf("%q %v", part, err)
	}
	fd, err := syscall.Open(filepath.Join(target, "a/file"), syscall.O_RDONLY, 0)
	must(t, err)
	defer syscall.Close(fd)
	original, err := syscall.Open(filepath.Join(source, "a/file"), syscall.O_RDONLY, 0)
	must(t, err)
	defer syscall.Close(original)
	want, err := readXattrs(original, isKept)
	must(t, err)
	if got, err := readXattrs(fd, isKept); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("attributes %q, %q were there: %v", got, want, err)
	}
}

func TestAStreamIsATarForOthers(t *testing.T) {
	source := nastyTree(t)
	must(t, os.Truncate(filepath.Join(source, "sparse"), 1<<31))
	stream, _ := packed(t, "--as", "named", source)
	target := t.TempDir()
	command := exec.Command("tar", "-x", "-p", "-C", target)
	command.Stdin = bytes.NewReader(stream)
	if said, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	expectSame(t, describe(t, filepath.Join(target, "named")), describe(t, source))
	for _, format := range []string{"gnu", "posix"} {
		foreign, err := exec.Command("tar", "--format="+format, "-S", "-c", "-C", filepath.Dir(source), "tree").Output()
		must(t, err)
		target := t.TempDir()
		if _, said, status := tool(t, foreign, "unpack", "--to", target+"/."); status != 0 {
			t.Fatalf("%s: %v", format, said)
		}
		if got, want := describe(t, filepath.Join(target, "tree")), describe(t, source); format == "posix" {
			expectSame(t, got, want)
		} else if len(got) != len(want) { // GNU's own format has no fractions of seconds
			t.Fatalf("%s: %d of %d files", format, len(got), len(want))
		}
	}
}

// streamOf makes a stream that no honest packer makes.
func streamOf(t *testing.T, entries ...*tarstream.Entry) []byte {
	t.Helper()
	var stream bytes.Buffer
	w := tarstream.NewWriter(&stream)
	for _, entry := range entries {
		if entry.Mode == 0 {
			entry.Mode = 0o755
		}
		entry.UID, entry.GID = int64(os.Getuid()), int64(os.Getgid())
		must(t, w.Begin(entry))
		if entry.Size > 0 {
			_, err := w.Write(make([]byte, entry.Stored()))
			must(t, err)
		}
	}
	must(t, w.Close())
	return stream.Bytes()
}

func folder(path string) *tarstream.Entry {
	return &tarstream.Entry{Kind: tarstream.Folder, Path: path}
}
func file(path string) *tarstream.Entry {
	return &tarstream.Entry{Kind: tarstream.File, Path: path, Size: 3}
}
func link(path, to string) *tarstream.Entry {
	return &tarstream.Entry{Kind: tarstream.Symlink, Path: path, Target: to}
}
func hard(path, to string) *tarstream.Entry {
	return &tarstream.Entry{Kind: tarstream.HardLink, Path: path, Target: to}
}

func TestNothingIsWrittenOutsideOfTheTarget(t *testing.T) {
	for name, entries := range map[string][]*tarstream.Entry{
		"..":                         {file("../victim")},
		".. in the middle":           {folder("a"), file("a/../../victim")},
		"a link of the stream":       {link("l", ".."), file("l/victim")},
		"a link to /":                {link("l", "/"), file("l/tmp/bandsox-victim")},
		"a link in a folder's place": {folder("a"), link("a", ".."), file("a/victim")},
		"a hard link out":            {hard("h", "../victim")},
		"a hard link through a link": {link("l", ".."), hard("h", "l/victim")},
		"a link that was there":      {file("there/victim")},
		"a folder for such a link":   {folder("there"), file("there/victim")},
	} {
		t.Run(name, func(t *testing.T) {
			place := t.TempDir()
			target := filepath.Join(place, "target")
			must(t, os.Mkdir(target, 0o755), os.WriteFile(filepath.Join(place, "victim"), []byte("untouched"), 0o644))
			must(t, os.Symlink(place, filepath.Join(target, "there")))
			_, said, status := tool(t, streamOf(t, entries...), "unpack", "--to", target+"/.")
			if status == 0 {
				t.Errorf("it was taken: %v", said)
			}
			text, err := os.ReadFile(filepath.Join(place, "victim"))
			if err != nil || string(text) != "untouched" {
				t.Errorf("%q %v", text, err)
			}
			if list, err := os.ReadDir(target); err != nil || len(list) != 1 {
				t.Errorf("something is left: %v %v", list, err)
			}
		})
	}
}

func TestADamagedStreamChangesNothing(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	must(t, os.Mkdir(source, 0o755), os.WriteFile(filepath.Join(source, "f"), bytes.Repeat([]byte("x"), 300000), 0o644))
	stream, said := packed(t, source)
	good := checked(stream, said)
	for name, bad := range map[string][]byte{
		"a wrong byte": append(append(append([]byte{}, good[:100000]...), 'y'), good[100001:]...),
		"cut short":    good[:len(good)/2],
		"no checksum":  stream,
		"empty":        nil,
		"noise":        bytes.Repeat([]byte("noise"), 1000),
	} {
		place := t.TempDir()
		if _, said, status := tool(t, bad, "unpack", "--checked", "--to", filepath.Join(place, "copy")); status == 0 {
			t.Errorf("%s: %v", name, said)
		}
		if list, err := os.ReadDir(place); err != nil || len(list) != 0 {
			t.Errorf("%s left %v %v", name, list, err)
		}
	}
}

func TestWhatAKilledCopyLeftIsSweptAndWhatLivesIsNot(t *testing.T) {
	place := t.TempDir()
	dead, alive := filepath.Join(place, stagePrefix+"dead"), filepath.Join(place, stagePrefix+"alive")
	must(t, os.MkdirAll(filepath.Join(dead, "root/sub"), 0o755), os.Mkdir(alive, 0o700))
	must(t, os.WriteFile(filepath.Join(dead, "root/sub/f"), nil, 0o000), os.Chmod(filepath.Join(dead, "root/sub"), 0o555))
	holder, err := os.Open(alive)
	must(t, err)
	defer holder.Close()
	must(t, syscall.Flock(int(holder.Fd()), syscall.LOCK_EX))
	stream := streamOf(t, folder("."), file("f"))
	if _, said, status := tool(t, stream, "unpack", "--to", filepath.Join(place, "copy")); status != 0 {
		t.Fatal(said)
	}
	list, err := os.ReadDir(place)
	must(t, err)
	if len(list) != 2 || list[0].Name() != filepath.Base(alive) || list[1].Name() != "copy" {
		t.Fatalf("there are %v", list)
	}
}

func TestPatternsChooseWhatIsPacked(t *testing.T) {
	source := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(source, "src/deep"), 0o755), os.MkdirAll(filepath.Join(source, "docs"), 0o755))
	for _, name := range []string{"src/a.py", "src/b.txt", "src/deep/c.py", "docs/x", "top.py"} {
		must(t, os.WriteFile(filepath.Join(source, name), []byte("x"), 0o644))
	}
	stream, _ := packed(t, "--include", "*.py", "--exclude", "deep/", source)
	r := tarstream.NewReader(bytes.NewReader(stream))
	var paths []string
	for entry, err := r.Next(); err == nil; entry, err = r.Next() {
		paths = append(paths, entry.Path)
	}
	expectSame(t, paths, []string{".", "src", "src/a.py", "top.py"})
}

func TestWrongWordsAndMissingFilesAreSaid(t *testing.T) {
	for code, words := range map[string][][]string{
		"bad-request":     {{"pack"}, {"pack", "relative"}, {"pack", "--no", "/x"}, {"pack", "/a", "/b"}, {"pack", "--exclude", "[", "/"}, {"unpack"}, {"unpack", "--to"}, {"unpack", "--to", "/tmp", "more"}},
		"not-found":       {{"pack", "/no/such/file"}, {"pack", "/etc/no-such-file"}, {"unpack", "--to", "/no/such/folder"}},
		"not-a-directory": {{"pack", "/etc/passwd/."}},
	} {
		for _, each := range words {
			_, said, status := tool(t, nil, each...)
			failed, is := said["error"].(map[string]interface{})
			if status != 1 || !is || failed["code"] != code {
				t.Errorf("%v: %v, %s was meant", each, said, code)
			}
		}
	}
}

func TestTheKernelsOwnFilesAreLeftOut(t *testing.T) {
	_, said := packed(t, "/proc")
	if said["files"].(float64) != 0 || said["skippedCount"].(float64) != 1 {
		t.Fatalf("%v", said)
	}
}
