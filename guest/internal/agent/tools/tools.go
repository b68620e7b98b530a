// Package tools runs the agent's own programs as commands: PROTOCOL.md section 7. They are in the agent's binary, which lies in no
// image and has no path any more once the machine has left its initramfs. So it is held open from the start, and executed through
// its descriptor; where a guest has hidden its /proc, which that takes, a copy of it is.
package tools

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/failure"
)

// Word is what the binary's first argument is when it shall be a tool.
const Word = "tool"

// Names are the tools that there are.
var Names = map[string]bool{"pack": true, "unpack": true, "layer": true}

// noExec is ST_NOEXEC of statfs(2).
const noExec = 8

// binary is this program.
var binary struct {
	sync.Mutex
	file *os.File
	// copied is the way to a copy, made when it was needed first; made is what was made there.
	copied string
	made   os.FileInfo
}

// folders are where a copy may lie: first those that are gone with the machine.
var folders = []string{"/run", "/dev/shm", "/tmp", "/"}

// Hold opens the agent's binary, once and for all. It needs /proc.
func Hold() error {
	binary.Lock()
	defer binary.Unlock()
	if binary.file != nil {
		return nil
	}
	file, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("cannot hold the agent's own binary: %w", err)
	}
	binary.file = file
	return nil
}

// Program gives what runs a tool, whose name and arguments are words, and all its arguments.
func Program(words []string) (path string, argv []string, err error) {
	if len(words) == 0 || !Names[words[0]] {
		name := ""
		if len(words) > 0 {
			name = words[0]
		}
		return "", nil, failure.New(failure.CommandNotFound, "cannot run the tool %.40q: there is no such tool", name)
	}
	path, err = locate("/proc/self/fd")
	if err != nil {
		return "", nil, failure.Of(err, "cannot run the tool %s", words[0])
	}
	return path, append([]string{"bandsox-agent", Word}, words...), nil
}

// locate gives a path that leads to the binary. descriptors is where the kernel shows those of the process that executes it.
func locate(descriptors string) (string, error) {
	if err := Hold(); err != nil {
		return "", err
	}
	binary.Lock()
	defer binary.Unlock()
	own, err := binary.file.Stat()
	if err != nil {
		return "", err
	}
	path := fmt.Sprintf("%s/%d", descriptors, binary.file.Fd())
	if found, err := os.Stat(path); err == nil && os.SameFile(found, own) {
		return path, nil
	}
	if binary.made != nil {
		if found, err := os.Lstat(binary.copied); err == nil && isUntouched(found, binary.made) {
			return binary.copied, nil
		}
	}
	var reason error
	for _, folder := range folders {
		var stat syscall.Statfs_t
		if err := syscall.Statfs(folder, &stat); err != nil || stat.Flags&noExec != 0 {
			continue
		}
		if binary.copied, binary.made, err = makeCopy(folder, binary.file, own.Size()); err == nil {
			return binary.copied, nil
		}
		reason = err
	}
	if reason == nil {
		reason = errors.New("no folder may hold a program")
	}
	return "", reason
}

func isUntouched(found, made os.FileInfo) bool {
	return os.SameFile(found, made) && found.Size() == made.Size() && found.ModTime().Equal(made.ModTime()) && found.Mode() == made.Mode()
}

// makeCopy writes the binary to a file of its own.
func makeCopy(folder string, source io.ReaderAt, size int64) (path string, made os.FileInfo, err error) {
	// No other command may be forked meanwhile: it would have the file open for writing until it executes its own program, and the
	// kernel would execute ours for nobody (ETXTBSY).
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	file, err := os.CreateTemp(folder, ".bandsox-agent-")
	if err != nil {
		return "", nil, err
	}
	_, err = io.Copy(file, io.NewSectionReader(source, 0, size))
	if err == nil {
		err = file.Chmod(0o755)
	}
	if err == nil {
		made, err = file.Stat()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		if removeErr := os.Remove(file.Name()); removeErr != nil {
			console.Printf("cannot remove %s: %v", file.Name(), removeErr)
		}
		return "", nil, err
	}
	return file.Name(), made, nil
}
