package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"bandsox.dev/guest/internal/agent/console"
)

// Modules is the initramfs' folder of kernel modules. It is held open, since the agent loads the late ones after it has left
// the initramfs.
type Modules struct{ folder *os.File }

// OpenModules opens /modules. A kernel with everything built in has none, which is no error.
func OpenModules() (*Modules, error) {
	folder, err := os.Open("/modules")
	if errors.Is(err, os.ErrNotExist) {
		return &Modules{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open the initramfs' modules: %w", err)
	}
	return &Modules{folder}, nil
}

// Load loads what a list names, in its order. A module that does not load is logged: whether the machine can do without it
// shows soon enough, and the kernel at hand may have it built in.
func (m *Modules) Load(list string) {
	if m.folder == nil {
		return
	}
	names, err := m.read(list)
	if err != nil {
		console.Printf("cannot read the list of modules %s: %v", list, err)
		return
	}
	for _, name := range strings.Fields(names) {
		if err := m.load(name); err != nil {
			console.Printf("cannot load the module %s: %v", name, err)
		}
	}
}

// Discard removes the modules, whose files are memory, and closes the folder.
func (m *Modules) Discard() {
	if m.folder == nil {
		return
	}
	names, err := m.folder.Readdirnames(-1)
	if err != nil {
		console.Printf("cannot list the initramfs' modules: %v", err)
	}
	for _, name := range names {
		if err := unlinkAt(m.folder, name); err != nil {
			console.Printf("cannot remove the module %s: %v", name, err)
		}
	}
	if err := m.folder.Close(); err != nil {
		console.Printf("cannot close the initramfs' modules: %v", err)
	}
	m.folder = nil
}

func (m *Modules) open(name string) (*os.File, error) {
	fd, err := syscall.Openat(int(m.folder.Fd()), name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (m *Modules) read(name string) (string, error) {
	file, err := m.open(name)
	if err != nil {
		return "", err
	}
	defer file.Close() // read only: its error has nothing to tell
	text := make([]byte, 64<<10)
	n, err := file.Read(text)
	return string(text[:n]), err
}

func (m *Modules) load(name string) error {
	file, err := m.open(name)
	if err != nil {
		return err
	}
	defer file.Close() // read only: its error has nothing to tell
	noParameters := []byte{0}
	_, _, errno := syscall.Syscall(sysFinitModule, file.Fd(), uintptr(unsafe.Pointer(&noParameters[0])), 0)
	if errno != 0 && errno != syscall.EEXIST { // loaded already, as another's dependency
		return errno
	}
	return nil
}

func unlinkAt(folder *os.File, name string) error {
	path, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall(syscall.SYS_UNLINKAT, folder.Fd(), uintptr(unsafe.Pointer(path)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
