package transfer

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"
)

// maxPseudoBytes is more than any file of /proc and /sys has that one would want whole; /proc/kallsyms has some 10 MiB.
const maxPseudoBytes = 16 << 20

// readPseudoFile takes the content of a file that says it is empty and is not, as those of /proc do: its true size is known
// only then. It is kept in memory that is a file, so that the sending need not know.
func (o *outgoing) readPseudoFile() error {
	memory, err := memoryFile()
	if err != nil {
		return err
	}
	size, err := io.Copy(memory, io.LimitReader(o.file, maxPseudoBytes+1))
	if err == nil && size > maxPseudoBytes {
		err = fmt.Errorf("it says that it is empty, and has more than %d bytes", maxPseudoBytes)
	}
	if err == nil {
		_, err = memory.Seek(0, io.SeekStart)
	}
	if err != nil || size == 0 {
		_ = memory.Close() // nothing is in it that anybody needs
		return err
	}
	o.release()
	o.file, o.size = memory, size
	return nil
}

// memoryFile is memfd_create(2).
func memoryFile() (*os.File, error) {
	const closeOnExec = 1 // MFD_CLOEXEC
	name := [...]byte{'p', 's', 'e', 'u', 'd', 'o', 0}
	fd, _, errno := syscall.Syscall(sysMemfdCreate, uintptr(unsafe.Pointer(&name)), closeOnExec, 0)
	if errno != 0 {
		return nil, fmt.Errorf("memfd_create: %w", errno)
	}
	return os.NewFile(fd, "memory"), nil
}
