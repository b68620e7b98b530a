package boundedlog

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func open(t *testing.T, path string, maxBytes int64) *Log {
	t.Helper()
	log, err := Open(path, maxBytes, func(err error) { t.Errorf("reported: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func wantTail(t *testing.T, log *Log, limit int64, want string) {
	t.Helper()
	if got, err := log.Tail(limit); err != nil || string(got) != want {
		t.Errorf("the last %d bytes are %q (%v), want %q", limit, got, err, want)
	}
}

func TestBothFilesTogetherHoldTheNewestBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log := open(t, path, 10)
	log.Write([]byte("0123456"))
	log.Write([]byte("789abcdefghijklmnopqrstu"))
	if older, newer := read(t, path+".1"), read(t, path); older != "klmnopqrst" || newer != "u" {
		t.Errorf("the files hold %q and %q", older, newer)
	}
	wantTail(t, log, 3, "stu")
	wantTail(t, log, 1, "u")
	wantTail(t, log, 100, "klmnopqrstu")
	wantTail(t, log, 0, "")
}

func TestLogGoesOnWhereAnEarlierOneEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	first := open(t, path, 10)
	first.Write([]byte("before "))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	log := open(t, path, 10)
	log.Write([]byte("after"))
	wantTail(t, log, 100, "before after")
	if got, err := log.TailSinceOpen(100); err != nil || string(got) != "after" {
		t.Errorf("since the opening: %q, %v", got, err)
	}
}

func TestFullDiskIsReportedOnceAndDoesNotStopTheWriter(t *testing.T) {
	var reports []error
	log, err := Open("/dev/full", 1<<20, func(err error) { reports = append(reports, err) })
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 3; i++ {
		log.Write([]byte("lost"))
	}
	if len(reports) != 1 || !strings.Contains(reports[0].Error(), syscall.ENOSPC.Error()) {
		t.Errorf("reported: %v", reports)
	}
}

func TestLogDoesNotFollowALink(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), path); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, 10, nil); err == nil {
		t.Error("a link was followed")
	}
}
