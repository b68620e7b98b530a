// Package links says how the machine sees its links to the host: PROTOCOL.md section 8.
package links

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/wire"
)

const (
	familyVsock = 40 // AF_VSOCK, linux/socket.h
	// getLocalCID is IOCTL_VM_SOCKETS_GET_LOCAL_CID of linux/vm_sockets.h, on /dev/vsock.
	getLocalCID = 0x7b9
	// deviceID is virtio's number of a socket device, as /sys writes it (virtio 1.2, section 5).
	deviceID       = "0x0013"
	maxReasonBytes = 4096
	// maxSerial is the most that a `links` message may hold.
	maxSerial = 8
)

// transports are the modules that carry vsock in a virtio guest, by their names in /proc/modules.
var transports = []string{"vmw_vsock_virtio_transport", "virtio_vsock"}

// State is what the agent itself knows of its links. Its zero value knows of none.
type State struct {
	mutex  sync.Mutex
	port   *uint32
	reason string
	serial []serialLine
}

type serialLine struct {
	name, kind string
	isUp       func() bool
}

// VsockListens notes the port that the agent listens on.
func (s *State) VsockListens(port uint32) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.port, s.reason = &port, ""
}

// VsockWaits notes why it does not listen.
func (s *State) VsockWaits(reason error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.port, s.reason = nil, reason.Error()
}

// SerialServes notes a serial line, in the place of one of that name. kind is port or uart; isUp says whether a host is there.
func (s *State) SerialServes(name, kind string, isUp func() bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for i := range s.serial {
		if s.serial[i].name == name {
			s.serial = append(append([]serialLine{}, s.serial[:i]...), s.serial[i+1:]...) // Message may be reading the old one
			break
		}
	}
	if len(s.serial) < maxSerial {
		s.serial = append(s.serial, serialLine{name, kind, isUp})
	}
}

// Message is the answer to a host that asks.
func (s *State) Message() wire.Links {
	s.mutex.Lock()
	message := wire.Links{
		Type:   "links",
		Vsock:  wire.VsockLink{Port: s.port, Reason: printable(s.reason)},
		Serial: make([]wire.SerialLine, 0, len(s.serial)),
	}
	lines := s.serial
	s.mutex.Unlock()
	for _, line := range lines { // without the lock: isUp is somebody else's
		message.Serial = append(message.Serial, wire.SerialLine{Name: line.name, Kind: line.kind, Up: line.isUp()})
	}
	message.Vsock.Kernel = kernelKnowsVsock()
	message.Vsock.Module = loadedTransport("/proc/modules")
	message.Vsock.Device = hasDevice("/sys/bus/virtio/devices")
	if message.Vsock.Device {
		message.Vsock.CID = localCID("/dev/vsock")
	}
	return message
}

func printable(text string) string {
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "?"), "\x00", "?")
	if len(text) > maxReasonBytes {
		text = strings.ToValidUTF8(text[:maxReasonBytes], "")
	}
	return text
}

func kernelKnowsVsock() bool {
	fd, err := syscall.Socket(familyVsock, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, syscall.EAFNOSUPPORT) // out of descriptors, it says nothing about vsock
	}
	if err := syscall.Close(fd); err != nil {
		console.Printf("cannot close a socket: %v", err)
	}
	return true
}

// loadedTransport is "" where it is built in, not there, or cannot be known: a guest may hide its /proc.
func loadedTransport(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, _, _ := strings.Cut(lines.Text(), " ")
		for _, transport := range transports {
			if name == transport {
				return name
			}
		}
	}
	return ""
}

func hasDevice(folder string) bool {
	devices, err := filepath.Glob(filepath.Join(folder, "*", "device"))
	if err != nil {
		return false // a pattern without a mistake has no error
	}
	for _, device := range devices {
		id, err := os.ReadFile(device)
		if err == nil && strings.TrimSpace(string(id)) == deviceID {
			return true
		}
	}
	return false
}

// localCID is nil where nobody says it.
func localCID(path string) *uint32 {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	return askCID(fd)
}
