package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const (
	// lineMark tells the host that all which comes before is not ours, and that it may speak.
	lineMark = "bench-guest listens\n"
	// portsFolder is where the kernel lists virtio-serial ports with their names.
	portsFolder = "/sys/class/virtio-ports"
	// hostPoll is how often a port is read again whose host is not there.
	hostPoll = 10 * time.Millisecond
)

// serveLine answers requests over the machine's serial line, which is one stream: ttyS and a number is a UART, any other name a
// virtio-serial port. Nothing is lost on either unless the guest is too late, so that no frames are needed.
func serveLine(name string) error {
	device := "/dev/" + name
	isUART := strings.HasPrefix(name, "ttyS")
	if !isUART {
		var err error
		if device, err = findPort(name); err != nil {
			return err
		}
	}
	fd, err := syscall.Open(device, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", device, err)
	}
	if isUART {
		if err := makeRaw(fd); err != nil {
			return fmt.Errorf("cannot set the modes of %s: %w", device, err)
		}
	}
	stream := line{os.NewFile(uintptr(fd), device)} // blocking: reads and writes are plain system calls
	noteStage("ready")
	if _, err := io.WriteString(stream, lineMark); err != nil {
		return err
	}
	return converse(stream)
}

func findPort(name string) (string, error) {
	for deadline := time.Now().Add(deviceTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		files, err := filepath.Glob(portsFolder + "/*/name")
		if err != nil {
			return "", err
		}
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == name {
				return "/dev/" + filepath.Base(filepath.Dir(file)), nil
			}
		}
	}
	return "", fmt.Errorf("no serial port %s within %v", name, deviceTimeout)
}

// line is a device that outlives its hosts: while none is there, a port gives an end of file.
type line struct{ *os.File }

func (l line) Read(data []byte) (int, error) {
	for {
		n, err := l.File.Read(data)
		if err != io.EOF {
			return n, err
		}
		time.Sleep(hostPoll)
	}
}

// makeRaw makes a UART carry bytes as they are, both ways. The agent leaves the line ends of what goes out to the console.
func makeRaw(fd int) error {
	var modes syscall.Termios
	if err := terminalModes(fd, syscall.TCGETS, &modes); err != nil {
		return err
	}
	modes.Iflag, modes.Oflag, modes.Lflag = 0, 0, 0
	modes.Cflag &^= syscall.CSIZE | syscall.PARENB
	modes.Cflag |= syscall.CS8 | syscall.CREAD | syscall.CLOCAL
	modes.Cc[syscall.VMIN], modes.Cc[syscall.VTIME] = 1, 0
	return terminalModes(fd, syscall.TCSETS, &modes)
}

func terminalModes(fd int, call uintptr, modes *syscall.Termios) error {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), call, uintptr(unsafe.Pointer(modes)))
	if errno != 0 {
		return errno
	}
	return nil
}
