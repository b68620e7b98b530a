package main

import (
	"io"
	"net"
	"sync/atomic"
	"time"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/serialline"
	"bandsox.dev/guest/internal/serial"
	"bandsox.dev/guest/internal/serial/mux"
)

const (
	// firstLinePort is the first of those that make the line itself hostile.
	firstLinePort = 1_000_000
	portsOfMode   = 100
	lineReadBytes = 4096
	// dialLimit is longer than the shim's, for a serial line.
	dialLimit      = 15 * time.Second
	messagesAtOnce = 64
)

// serveSerial serves the line as an honest agent does, up to the protocol of the streams; and is hostile below when it is asked to.
func serveSerial(config boot.Config) {
	defer console.Contain("serving the serial line")
	name := config.Serial
	if name == "" {
		name = serialline.DefaultPort
	}
	for ; ; time.Sleep(linkRetry) {
		device, coding, err := serialline.Open(name)
		if err != nil {
			continue // a machine without one looks for it as long as it lives
		}
		console.Printf("hostile ready on the serial line %s (boot %d ms)", name, boot.UptimeMs())
		shared := share(device)
		for {
			mode, lasting := serveHonestly(shared, coding, config)
			console.Printf("hostile: the line is %s for %v", mode.name, lasting)
			behave(shared, coding, mode, lasting)
			shared.honestSince = time.Now()
			console.Printf("hostile: the line is honest")
		}
	}
}

// serveHonestly returns when a port is dialled that asks for a hostile line.
func serveHonestly(shared *sharedLine, coding serial.Coding, config boot.Config) (lineMode, time.Duration) {
	line := &honestLine{shared: shared, cut: make(chan struct{})}
	var asked atomic.Uint32
	guest := serial.NewGuest(line, serial.Settings{
		Coding: coding, Contain: console.Contain,
		AcceptPort: func(port uint32) bool {
			_, _, isOne := lineModeOf(port)
			if isOne && port == shared.asked && time.Since(shared.honestSince) < dialLimit {
				return false // the shim dials again for so long, though whoever asked for it may be gone
			}
			if isOne && asked.CompareAndSwap(0, port) {
				close(line.cut) // from here on nothing honest is said: not even the answer to this
			}
			return true
		},
	})
	go accept(guest, func(conn net.Conn) string {
		return modeOf(config.Hostile, conn.LocalAddr().(mux.Addr).Port-config.Port)
	})
	<-guest.Done()
	shared.asked = asked.Load()
	mode, lasting, _ := lineModeOf(shared.asked)
	return mode, lasting
}

func lineModeOf(port uint32) (lineMode, time.Duration, bool) {
	index := (port - firstLinePort) / portsOfMode
	if port < firstLinePort || index >= uint32(len(lineModes)) {
		return lineMode{}, 0, false
	}
	return lineModes[index], time.Duration((port-firstLinePort)%portsOfMode) * time.Second, true
}

// sharedLine is a device that has one reader after another, none of which leaves a read behind.
type sharedLine struct {
	device io.ReadWriteCloser
	pieces chan []byte
	rest   []byte
	// asked is the last port that made the line hostile, honestSince when that was over.
	asked       uint32
	honestSince time.Time
}

func share(device io.ReadWriteCloser) *sharedLine {
	shared := &sharedLine{device: device, pieces: make(chan []byte)}
	go func() {
		defer console.Contain("reading the serial line")
		for {
			piece := make([]byte, lineReadBytes)
			n, err := device.Read(piece)
			if err != nil {
				console.Printf("hostile: %v", err)
				select {} // the machine is of no use any more
			}
			shared.pieces <- piece[:n]
		}
	}()
	return shared
}

// read waits for bytes until either channel says that it is enough.
func (s *sharedLine) read(data []byte, cut <-chan struct{}, late <-chan time.Time) (int, bool) {
	if len(s.rest) == 0 {
		select {
		case s.rest = <-s.pieces:
		case <-cut:
			return 0, false
		case <-late:
			return 0, false
		}
	}
	n := copy(data, s.rest)
	s.rest = s.rest[n:]
	return n, true
}

// honestLine is the shared one until it is cut.
type honestLine struct {
	shared *sharedLine
	cut    chan struct{}
}

func (l *honestLine) Read(data []byte) (int, error) {
	select {
	case <-l.cut:
		return 0, io.EOF
	default:
	}
	n, there := l.shared.read(data, l.cut, nil)
	if !there {
		return 0, io.EOF
	}
	return n, nil
}

func (l *honestLine) Write(data []byte) (int, error) {
	select {
	case <-l.cut:
		return len(data), nil
	default:
		return l.shared.device.Write(data)
	}
}

// Close leaves the device to the next.
func (l *honestLine) Close() error { return nil }
