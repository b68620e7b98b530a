package firecracker

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"bandsox.dev/guest/internal/standin/machine"
)

// Faults are what a test has switched on.
type Faults struct {
	VsockRefuses    bool
	VsockDies       time.Duration // after the start; 0: never
	VsockAfterPause bool
	APISlow         time.Duration
	CrashAt, HangAt string
	GuestPanics     bool
	GuestSilent     string
	BootTakes       time.Duration
	NoKVM           bool
	Old             bool
}

// stepStart is the step of CrashAt and HangAt before the API socket is made; all others are requests.
const stepStart = "start"

// Set switches one on, by NAME or NAME=VALUE.
func (f *Faults) Set(text string) (err error) {
	name, value, _ := strings.Cut(text, "=")
	switch name {
	case "vsock-refuses":
		f.VsockRefuses = true
	case "vsock-dies":
		f.VsockDies, err = milliseconds(name, value)
	case "vsock-after-pause":
		f.VsockAfterPause = true
	case "api-slow":
		f.APISlow, err = milliseconds(name, value)
	case "crash-at":
		f.CrashAt, err = step(name, value)
	case "hang-at":
		f.HangAt, err = step(name, value)
	case "guest-panics":
		f.GuestPanics = true
	case "guest-silent":
		switch value {
		case "":
			f.GuestSilent = machine.SilentListens
		case machine.SilentDeaf:
			f.GuestSilent = value
		default:
			err = fmt.Errorf("the fault guest-silent is %q: none, or deaf", value)
		}
	case "boot-takes":
		f.BootTakes, err = milliseconds(name, value)
	case "no-kvm":
		f.NoKVM = true
	case "old":
		f.Old = true
	default:
		err = fmt.Errorf("there is no fault %q", name)
	}
	return err
}

func milliseconds(name, value string) (time.Duration, error) {
	ms, err := strconv.Atoi(value)
	if err != nil || ms <= 0 {
		return 0, fmt.Errorf("the fault %s needs milliseconds, not %q", name, value)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func step(name, value string) (string, error) {
	if value == "" {
		return "", fmt.Errorf("the fault %s needs a step, such as start, InstanceStart or \"PUT /vsock\"", name)
	}
	return value, nil
}
