package qemustate

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func blocksOf(t *testing.T, file *os.File) int64 {
	t.Helper()
	status, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return status.Sys().(*syscall.Stat_t).Blocks
}

// run takes a state of a VMM that sends these bytes, and tells what was said and what the folder holds.
func run(t *testing.T, change func(*Save), send []byte) (status int, said map[string]any, folder string) {
	t.Helper()
	folder = t.TempDir()
	save := Save{
		Socket: filepath.Join(folder, "save.sock"), Owner: -1, Memory: filepath.Join(folder, "memory"),
		Devices: filepath.Join(folder, "devices"), MemoryBytes: memorySize,
	}
	change(&save)
	go func() {
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			conn, err := net.Dial("unix", save.Socket)
			if err != nil {
				continue
			}
			_, _ = conn.Write(send) // who does not read on has seen enough
			_ = conn.Close()
			return
		}
	}()
	var out bytes.Buffer
	status = save.Run(&out)
	if err := json.Unmarshal(out.Bytes(), &said); err != nil {
		t.Fatal(err)
	}
	return status, said, folder
}

func namesIn(t *testing.T, folder string) string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return strings.Join(names, " ")
}

func wholeStream() []byte {
	var s stream
	s.start().u8(sectionEnd).u32(2).u64(flagPage).name(MemoryBlock).page("a").u64(flagEnd).footer().u8(sectionFull).u8(0)
	return s.Bytes()
}

func TestAStateIsTwoFilesThatNobodyWrites(t *testing.T) {
	status, said, folder := run(t, func(*Save) {}, wholeStream())
	if status != 0 || said["event"] != "saved" || said["memoryBytes"] != float64(pageBytes) {
		t.Fatal(status, said)
	}
	if names := namesIn(t, folder); names != "devices memory" {
		t.Errorf("the folder holds %s", names)
	}
	for _, name := range []string{"devices", "memory"} {
		if found, err := os.Stat(filepath.Join(folder, name)); err != nil || found.Mode() != 0o444 {
			t.Errorf("%s: %v %v", name, found.Mode(), err)
		}
	}
}

func TestAFailureLeavesNothing(t *testing.T) {
	cut := wholeStream()[:100]
	status, said, folder := run(t, func(*Save) {}, cut)
	if status != 1 || said["event"] != "failed" || said["message"] != "QEMU's stream ends too early" || said["code"] != "stream-cut" {
		t.Error(status, said)
	}
	if names := namesIn(t, folder); names != "" {
		t.Errorf("the folder holds %s", names)
	}
	status, said, folder = run(t, func(save *Save) { save.Devices = "/dev/full/none" }, nil)
	if status != 1 || !strings.Contains(said["message"].(string), "not a directory") {
		t.Error(status, said)
	}
	if names := namesIn(t, folder); names != "" {
		t.Errorf("the folder holds %s", names)
	}
}

func TestAFullDiskIsSaidSo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	small := t.TempDir()
	if err := syscall.Mount("bandsox-test", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("cannot mount: ", err)
	}
	defer func() {
		if err := syscall.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	}()
	var s stream
	s.begin()
	const size = 64 * pageBytes
	s.u64(size | flagSizes).name(MemoryBlock).u64(size).u64(flagEnd).footer().u8(sectionEnd).u32(2)
	for offset := uint64(0); offset < size; offset += pageBytes {
		s.u64(offset | flagPage).name(MemoryBlock).page("a")
	}
	s.u64(flagEnd).footer().u8(sectionFull)
	status, said, _ := run(t, func(save *Save) {
		save.Memory, save.MemoryBytes = filepath.Join(small, "memory"), size
	}, s.Bytes())
	if status != 1 || said["code"] != "ENOSPC" {
		t.Error(status, said)
	}
	if names := namesIn(t, small); names != "" {
		t.Errorf("the small file system holds %s", names)
	}
}
