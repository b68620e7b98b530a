// Package identity gives a machine what must not be another's: PROTOCOL.md section 9, `identify`.
package identity

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Of linux/random.h, for 4-byte integers.
const (
	addEntropy = 0x40085203 // RNDADDENTROPY
	reseed     = 0x5207     // RNDRESEEDCRNG
	// maxEntropyBytes is the bound of PROTOCOL.md.
	maxEntropyBytes = 512
)

// machineIDMode is what systemd gives the file (machine-id(5)).
const machineIDMode = 0o444

// Machine is this one. Its zero value is that of a test: files only, below Root.
type Machine struct {
	// Root is "" for the machine's own root.
	Root string
	// random is /dev/random, from before anybody could put something else in its place.
	random *os.File
}

// Hold takes hold of the kernel's random generator.
func (m *Machine) Hold() (err error) {
	m.random, err = os.Open("/dev/random")
	return err
}

// AddEntropy mixes secret bytes into the kernel's generator, and has all that draw from it begin anew: what has been saved with the
// machine's memory is known to every copy of it.
func (m *Machine) AddEntropy(data []byte) error {
	if m.random == nil {
		return errors.New("cannot add entropy: there is no random generator at hand")
	}
	var pool struct { // struct rand_pool_info
		bits, bytes int32
		data        [maxEntropyBytes]byte
	}
	pool.bytes = int32(copy(pool.data[:], data))
	pool.bits = 8 * pool.bytes
	if err := m.control(addEntropy, unsafe.Pointer(&pool)); err != nil {
		return fmt.Errorf("cannot add entropy: %w", err)
	}
	if err := m.control(reseed, nil); err != nil {
		return fmt.Errorf("cannot reseed the random generator: %w", err)
	}
	return nil
}

func (m *Machine) control(request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, m.random.Fd(), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// SetClock sets the time of day, in µs since 1970.
func (m *Machine) SetClock(us int64) error {
	now := syscall.NsecToTimeval(us * int64(time.Microsecond))
	if err := syscall.Settimeofday(&now); err != nil {
		return fmt.Errorf("cannot set the clock: %w", err)
	}
	return nil
}

// SetHostName renames the machine, in the kernel and in its files.
func (m *Machine) SetHostName(name string) error {
	if m.Root == "" {
		if err := syscall.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("cannot set the host name: %w", err)
		}
	}
	file := m.path("/etc/hostname")
	current, err := read(file)
	if err == nil && string(current) == name+"\n" {
		return nil // /etc/hosts knows it since then
	}
	if err := write(file, name+"\n", 0o644); err != nil {
		return err
	}
	file = m.path("/etc/hosts")
	hosts, err := read(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot read %s: %w", file, err)
	}
	renamed := renameIn(string(hosts), strings.TrimSpace(string(current)), name)
	if renamed == string(hosts) {
		return nil
	}
	return write(file, renamed, 0o644)
}

// ownAddress is what Debian, and the agent at boot, give a machine's own name.
const ownAddress = "127.0.1.1"

// renameIn puts a new name in the place of the old one in a hosts file (hosts(5)), where it stands for the machine itself. Other lines may
// be the user's. Programs look up their own name, and wait for a name server when nothing knows it.
func renameIn(hosts, old, name string) string {
	lines := strings.Split(strings.TrimRight(hosts, "\n"), "\n")
	isKnown := false
	for i, line := range lines {
		entry, _, _ := strings.Cut(line, "#")
		fields := strings.Fields(entry)
		if len(fields) < 2 {
			continue
		}
		isChanged := false
		for j := 1; j < len(fields); j++ {
			if fields[0] == ownAddress && fields[j] == old {
				fields[j], isChanged = name, true
			}
			isKnown = isKnown || fields[j] == name
		}
		if isChanged {
			lines[i] = fields[0] + "\t" + strings.Join(fields[1:], " ")
		}
	}
	if !isKnown {
		lines = append(lines, ownAddress+"\t"+name)
	}
	return strings.TrimLeft(strings.Join(lines, "\n")+"\n", "\n")
}

// SetMachineID writes machine-id(5), and D-Bus's copy where it is one.
func (m *Machine) SetMachineID(id string) error {
	if err := write(m.path("/etc/machine-id"), id+"\n", machineIDMode); err != nil {
		return err
	}
	copied := m.path("/var/lib/dbus/machine-id")
	if info, err := os.Lstat(copied); err != nil || !info.Mode().IsRegular() {
		return nil // mostly a link to the other
	}
	return write(copied, id+"\n", machineIDMode)
}

func (m *Machine) path(file string) string {
	if m.Root == "" {
		return file
	}
	return filepath.Join(m.Root, file)
}

// maxFileBytes bounds what is read of a file.
const maxFileBytes = 1 << 20

// read waits for nobody: where there should be a file, a guest's user may have made a pipe.
func read(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close() // read only: its error has nothing to tell
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, err // of what is no file nothing is kept
	}
	return io.ReadAll(io.LimitReader(file, maxFileBytes))
}

// oneBlock is what reaches a disk whole or not at all.
const oneBlock = 4096

// write changes a file's content, and nothing else of it where it can: that is several times as quick as a new file, and every start of
// a machine waits for it. mode is that of a file that was not there.
func write(path, content string, mode os.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil || len(content) > oneBlock {
		if err == nil {
			_ = file.Close() // nothing was written
		}
		return Replace(path, content, mode)
	}
	_, err = file.WriteString(content)
	if err == nil && isLonger(file, len(content)) {
		err = file.Truncate(int64(len(content)))
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

// isLonger spares a truncation that would change nothing: for an emulated guest it is some ms of code that it has not run before.
func isLonger(file *os.File, bytes int) bool {
	info, err := file.Stat()
	return err != nil || info.Size() > int64(bytes)
}

// Replace writes a file in the place of another, or of a link.
func Replace(path, content string, mode os.FileMode) error {
	temporary := path + ".bandsox"
	err := os.WriteFile(temporary, []byte(content), 0o644)
	if err == nil {
		err = os.Chmod(temporary, mode)
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		return nil
	}
	if removeErr := os.Remove(temporary); removeErr != nil && !errors.Is(removeErr, os.ErrNotExist) {
		return fmt.Errorf("cannot remove %s: %w", temporary, removeErr)
	}
	return fmt.Errorf("cannot write %s: %w", path, err)
}
