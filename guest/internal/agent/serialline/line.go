// Package serialline opens the machine's serial line to the host: a virtio-serial port, or a UART that is the console as well.
package serialline

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"bandsox.dev/guest/internal/serial"
)

// DefaultPort is the name of the port that is looked for when the host names none.
const DefaultPort = "bandsox.agent"

// portsFolder is where the kernel lists virtio-serial ports, each with the name that the host gave it.
const portsFolder = "/sys/class/virtio-ports"

// Open opens what the host calls `name`: ttyS and a number is a UART, anything else a port.
func Open(name string) (io.ReadWriteCloser, serial.Coding, error) {
	if isUART(name) {
		uart, err := openUART("/dev/" + name)
		if err != nil {
			return nil, serial.Text, err
		}
		return uart, serial.Text, nil
	}
	device, err := findPort(portsFolder, name)
	if err != nil {
		return nil, serial.Raw, err
	}
	port, err := openPort(device)
	if err != nil {
		return nil, serial.Raw, err
	}
	return port, serial.Raw, nil
}

func isUART(name string) bool {
	number := strings.TrimPrefix(name, "ttyS")
	return number != name && number != "" && strings.Trim(number, "0123456789") == ""
}

// findPort gives the path of the device with a name.
func findPort(folder, name string) (string, error) {
	files, err := filepath.Glob(folder + "/*/name")
	if err != nil {
		return "", err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		// A port may go while we look, and gets its name a moment after it has come.
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
			return "", fmt.Errorf("cannot look at a serial port: %w", err)
		}
		if strings.TrimSpace(string(text)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(file)), nil
		}
	}
	return "", fmt.Errorf("there is no serial port %s", name)
}

// openDevice opens a device on the runtime's poller, so that Close ends a waiting Read.
func openDevice(path string) (*os.File, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
