package qemustate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/shim/ownsocket"
)

const (
	// connectLimit is for a VMM that is told to send its state, on a busy host.
	connectLimit = 30 * time.Second
	// silenceLimit is for a VMM that flushes its disks in between. However long it takes, it is to make progress.
	silenceLimit = 2 * time.Minute
	// allRead is what a finished file gets: machines of several users are loaded from it. The folder keeps it from others.
	allRead = 0o444
)

// Save says what to take from a VMM, and where to put it.
type Save struct {
	// Socket is where the VMM connects to, which is removed when it has, or has not.
	Socket string
	// Owner may connect; -1: this user.
	Owner int
	// Memory and Devices are the files, which must not be there yet.
	Memory, Devices string
	// MemoryBytes is what the machine has.
	MemoryBytes int64
}

// saved is the line about a state.
type saved struct {
	Event string `json:"event"`
	// MemoryBytes are those of pages that are not all zero.
	MemoryBytes int64 `json:"memoryBytes"`
	DeviceBytes int64 `json:"deviceBytes"`
	Ms          int64 `json:"ms"`
}

// Run takes the state of one VMM and says how it went, in one line. A failure leaves no file. It returns the status to exit with.
func (s Save) Run(out io.Writer) int {
	result, err := s.take()
	if err == nil {
		err = json.NewEncoder(out).Encode(result)
	}
	if err == nil {
		return 0
	}
	failed := json.NewEncoder(out).Encode(struct {
		Event   string `json:"event"`
		Code    string `json:"code,omitempty"`
		Message string `json:"message"`
	}{"failed", failureCode(err), err.Error()})
	if failed != nil {
		fmt.Fprintln(os.Stderr, "bandsox-shim:", err)
	}
	return 1
}

// systemCodes are the errors that a user can do something about.
var systemCodes = map[syscall.Errno]string{
	syscall.ENOSPC: "ENOSPC", syscall.EDQUOT: "EDQUOT", syscall.EFBIG: "EFBIG", syscall.EIO: "EIO", syscall.EROFS: "EROFS",
	syscall.EACCES: "EACCES", syscall.EEXIST: "EEXIST", syscall.ENOENT: "ENOENT",
}

// codeCut says that the VMM knows more.
const codeCut = "stream-cut"

func failureCode(err error) string {
	if errors.Is(err, errCut) {
		return codeCut
	}
	var number syscall.Errno
	if errors.As(err, &number) {
		return systemCodes[number]
	}
	return ""
}

func (s Save) take() (result saved, err error) {
	if s.MemoryBytes <= 0 || s.MemoryBytes%pageBytes != 0 {
		return saved{}, fmt.Errorf("a memory of %d bytes has no whole pages", s.MemoryBytes)
	}
	gone, stop, err := starterGone()
	if err != nil {
		return saved{}, err
	}
	defer stop()
	listener, err := s.listen()
	if err != nil {
		return saved{}, err
	}
	defer listener.Close() // nobody is waited for any more
	defer closeWhen(gone, listener)()
	memoryFile, err := create(s.Memory)
	if err != nil {
		return saved{}, firstError(err, removeSocket(s.Socket))
	}
	defer func() { err = finish(memoryFile, err) }()
	devicesFile, err := create(s.Devices)
	if err != nil {
		return saved{}, firstError(err, removeSocket(s.Socket))
	}
	defer func() { err = finish(devicesFile, err) }()
	memory, err := NewMemory(memoryFile, s.MemoryBytes)
	if err != nil {
		return saved{}, firstError(err, removeSocket(s.Socket))
	}
	conn, err := listener.AcceptUnix()
	if err = firstError(err, removeSocket(s.Socket)); err != nil {
		return saved{}, err
	}
	defer conn.Close() // what is left of it nobody reads
	defer closeWhen(gone, conn)()
	began := time.Now()
	deviceBytes, err := Split(patient{conn}, memory, devicesFile)
	return saved{"saved", memory.pages * pageBytes, deviceBytes, time.Since(began).Milliseconds()}, err
}

func (s Save) listen() (*net.UnixListener, error) {
	// It is there under its name once it can be connected to, by whom it is for.
	unfinished := s.Socket + ".new"
	listener, err := ownsocket.Listen(unfinished)
	if err != nil {
		return nil, err
	}
	err = listener.SetDeadline(time.Now().Add(connectLimit))
	if err == nil && s.Owner >= 0 {
		err = os.Lchown(unfinished, s.Owner, s.Owner)
	}
	if err == nil {
		err = os.Rename(unfinished, s.Socket)
	}
	if err != nil {
		_ = listener.Close() // err is the news
		return nil, firstError(err, removeSocket(unfinished))
	}
	return listener, nil
}

func removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
}

// finish closes a file, and removes it where there was a failure, this one or an earlier.
func finish(file *os.File, failure error) error {
	err := failure
	if err == nil {
		err = file.Chmod(allRead)
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(file.Name()) // err is the news
	}
	return err
}

// patient reads from a VMM for as long as something comes.
type patient struct{ *net.UnixConn }

func (p patient) Read(bytes []byte) (int, error) {
	if err := p.SetReadDeadline(time.Now().Add(silenceLimit)); err != nil {
		return 0, err
	}
	n, err := p.UnixConn.Read(bytes)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("QEMU has sent nothing of its state for %v", silenceLimit)
	}
	return n, err
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
