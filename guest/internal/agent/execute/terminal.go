package execute

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/wire"
)

// A command's terminal is a pseudo-terminal (pty(7)). The command has the slave as its standard streams and as the controlling
// terminal of its session; the agent has the master, types into it what the host sends and reads from it what a screen would
// show. Line editing, echo and Ctrl-C are the kernel's work between the two.

const (
	ptmxPath = "/dev/ptmx"
	// tiocGPtPeer opens the slave by its master, whatever a command has done to /dev/pts (asm-generic/ioctls.h).
	tiocGPtPeer = 0x5441
	// iutf8 lets an erase key take a whole character away (asm-generic/termbits.h).
	iutf8 = 0x4000
	// slaveMode is what grantpt(3) gives: the user's, and writable for the group of devices, which the mount names.
	slaveMode = 0o620
	// defaultTerm is the kind of terminal that nearly every emulator is.
	defaultTerm = "xterm-256color"
)

// size is a terminal's, in characters.
type size struct{ cols, rows uint16 }

// sizeOf reads the fields of `pty` and `resize`, whose bounds the decoder has checked.
func sizeOf(message wire.Message) size {
	return size{cols: uint16(message.Integer("cols", 0)), rows: uint16(message.Integer("rows", 0))}
}

// terminal is the agent's side of a command's terminal, as far as the host acts on it. Its output is a stream like a pipe's.
type terminal struct {
	// master is a descriptor of its own: os.File holds a resize apart from the close at the command's end, and a write that
	// waits for the command to read ends by it.
	master *os.File
	last   byte // the last that was typed
}

// openTerminal makes a terminal that belongs to a user. The descriptors are for the output and for the command.
func openTerminal(dimensions size, uid uint32) (t *terminal, output, slave int, err error) {
	output, err = syscall.Open(ptmxPath, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, 0, failure.Of(err, "cannot open a terminal by %s", ptmxPath)
	}
	if slave, err = openSlave(output, dimensions, uid); err != nil {
		closeFD(output)
		return nil, 0, 0, err
	}
	own, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(output), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		closeFD(output)
		closeFD(slave)
		return nil, 0, 0, fmt.Errorf("cannot duplicate a terminal: %w", errno)
	}
	return &terminal{master: os.NewFile(own, "terminal"), last: '\n'}, output, slave, nil
}

func openSlave(master int, dimensions size, uid uint32) (int, error) {
	var locked int32
	if err := ioctl(master, syscall.TIOCSPTLCK, unsafe.Pointer(&locked)); err != nil {
		return 0, fmt.Errorf("cannot unlock a terminal: %w", err)
	}
	if err := setSize(master, dimensions); err != nil {
		return 0, fmt.Errorf("cannot set the size of a terminal: %w", err)
	}
	flags := uintptr(syscall.O_RDWR | syscall.O_NOCTTY | syscall.O_CLOEXEC)
	opened, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(master), tiocGPtPeer, flags)
	if errno != 0 {
		return 0, fmt.Errorf("cannot open a terminal's other side: %w", errno)
	}
	slave := int(opened)
	if err := prepareSlave(slave, uid); err != nil {
		closeFD(slave)
		return 0, err
	}
	return slave, nil
}

// prepareSlave gives it to the user, who may open /dev/tty and /dev/pts/N anew, and makes it a terminal for UTF-8.
func prepareSlave(slave int, uid uint32) error {
	if err := syscall.Fchown(slave, int(uid), -1); err != nil {
		return fmt.Errorf("cannot give a terminal to user %d: %w", uid, err)
	}
	if err := syscall.Fchmod(slave, slaveMode); err != nil {
		return fmt.Errorf("cannot set the mode of a terminal: %w", err)
	}
	settings, err := settingsOf(slave)
	if err != nil {
		return err
	}
	settings.Iflag |= iutf8
	if err := ioctl(slave, syscall.TCSETS, unsafe.Pointer(&settings)); err != nil {
		return fmt.Errorf("cannot change a terminal's settings: %w", err)
	}
	return nil
}

// Write types. It waits until the command, or the line that is being edited, has taken it.
func (t *terminal) Write(data []byte) (int, error) {
	if len(data) > 0 {
		t.last = data[len(data)-1]
	}
	return t.master.Write(data)
}

// End types what a person would type for the end of input, VEOF (mostly Ctrl-D): a hang-up would cost the command's last
// output, and a shell its jobs. Where a line is unfinished, the first hands it over and only a second one is an end.
// A program that edits lines itself (a shell, in raw mode) takes the same key for the same.
func (t *terminal) End() {
	var settings syscall.Termios
	var err error
	if controlErr := t.control(func(fd int) { settings, err = settingsOf(fd) }); controlErr != nil {
		return // closed: the command has ended
	}
	if err != nil {
		console.Printf("cannot end a command's input: %v", err)
		return
	}
	key := settings.Cc[syscall.VEOF]
	if key == 0 {
		return // the command has taken the key away, and with it any way to say it
	}
	keys := []byte{key}
	if settings.Lflag&syscall.ICANON != 0 && t.last != '\n' && t.last != '\r' {
		keys = append(keys, key)
	}
	if _, err := t.Write(keys); err != nil && !isClosed(err) && !isHungUp(err) {
		console.Printf("cannot end a command's input: %v", err)
	}
}

// Close lets go of typing and resizing; the output is a stream of its own. Harmless when repeated.
func (t *terminal) Close() error { return t.master.Close() }

// resize also sends SIGWINCH to the foreground process group, which is the kernel's work, when the size is another.
func (t *terminal) resize(dimensions size) {
	var err error
	if controlErr := t.control(func(fd int) { err = setSize(fd, dimensions) }); controlErr != nil {
		return // closed: the command has ended
	}
	if err != nil {
		console.Printf("cannot resize a terminal: %v", err)
	}
}

// control uses the descriptor while it cannot be closed. It fails only when it is closed already.
func (t *terminal) control(use func(fd int)) error {
	raw, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { use(int(fd)) })
}

func setSize(fd int, dimensions size) error {
	window := struct{ rows, cols, xPixels, yPixels uint16 }{rows: dimensions.rows, cols: dimensions.cols}
	return ioctl(fd, syscall.TIOCSWINSZ, unsafe.Pointer(&window))
}

// settingsOf gives the slave's settings, of whichever side the descriptor is.
func settingsOf(fd int) (syscall.Termios, error) {
	var settings syscall.Termios
	if err := ioctl(fd, syscall.TCGETS, unsafe.Pointer(&settings)); err != nil {
		return settings, fmt.Errorf("cannot ask a terminal for its settings: %w", err)
	}
	return settings, nil
}

func ioctl(fd int, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}
