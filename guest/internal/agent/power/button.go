package power

import (
	"encoding/binary"
	"os"
	"path/filepath"

	"bandsox.dev/guest/internal/agent/console"
)

// Of linux/input-event-codes.h.
const (
	eventKey    = 1
	keyPower    = 116
	keyDelete   = 111
	keyLeftCtrl = 29
	keyLeftAlt  = 56
	keyRightCtl = 97
	keyRightAlt = 100

	keyUp   = 0
	keyDown = 1
)

// eventBytes is sizeof(struct input_event) on 64-bit machines: two longs of time, type, code, value.
const eventBytes = 24

// HearButtons listens to every input device there is. It is called when the modules for them are loaded.
func (s *Stopper) HearButtons() {
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil {
		console.Printf("cannot look for input devices: %v", err) // only a bad pattern
	}
	for _, device := range devices {
		file, err := os.Open(device)
		if err != nil {
			console.Printf("cannot hear %s: %v", device, err)
			continue
		}
		go func() {
			defer console.Contain("hearing a button")
			defer file.Close() // read only: its error has nothing to tell
			s.hear(file)
		}()
	}
}

// hear reads one device until it is gone. Ctrl-alt-del is recognised here as well: a kernel without virtual terminals has
// a keyboard, but nobody who would turn the three keys into SIGINT.
func (s *Stopper) hear(device *os.File) {
	event := make([]byte, eventBytes)
	held := map[uint16]bool{}
	for {
		if n, err := device.Read(event); err != nil || n != eventBytes {
			return // the device was removed
		}
		kind := binary.LittleEndian.Uint16(event[16:])
		code := binary.LittleEndian.Uint16(event[18:])
		value := binary.LittleEndian.Uint32(event[20:])
		if kind != eventKey {
			continue
		}
		held[code] = value != keyUp
		ctrl := held[keyLeftCtrl] || held[keyRightCtl]
		alt := held[keyLeftAlt] || held[keyRightAlt]
		switch {
		case code == keyPower && value == keyDown:
			s.Stop(PowerOff, DefaultGrace)
		case code == keyDelete && value == keyDown && ctrl && alt:
			s.Stop(Reboot, DefaultGrace)
		}
	}
}
