// Package tsc measures how fast the processor's time stamp counter runs. A guest measures it once, when it boots, and counts its time by
// it from then on: a saved machine that goes on where it runs at another speed has seconds of another length. No file of the kernel's says it.
package tsc

import (
	"syscall"
	"time"
	"unsafe"
)

const (
	// leastApart lets the uncertainty of two readings, some 50 ns each, be 25 millionths of what is measured.
	leastApart = 4 * time.Millisecond
	readings   = 16

	// clockMonotonicRaw is CLOCK_MONOTONIC_RAW (clock_gettime(2)), which nobody slews.
	clockMonotonicRaw = 4
)

// moment is one reading of both clocks.
type moment struct {
	ticks uint64
	raw   time.Duration
}

// Stopwatch measures from its start.
type Stopwatch struct {
	begin moment
	isSet bool
}

// Start begins to measure.
func Start() Stopwatch {
	begin, ok := now()
	return Stopwatch{begin, ok}
}

// KHz returns the speed since the start, in kHz; it waits until some ms have passed. 0 when it cannot be found out.
func (s Stopwatch) KHz() uint64 {
	if !s.isSet {
		return 0
	}
	for {
		end, ok := now()
		if !ok || end.ticks <= s.begin.ticks {
			return 0
		}
		if passed := end.raw - s.begin.raw; passed >= leastApart {
			return uint64(float64(end.ticks-s.begin.ticks) * float64(time.Millisecond) / float64(passed))
		}
		time.Sleep(leastApart - (end.raw - s.begin.raw))
	}
}

// now reads the one clock between two readings of the other, several times, and keeps the time when they were closest: whoever is
// interrupted between them reads two moments.
func now() (best moment, ok bool) {
	if !isThere {
		return moment{}, false
	}
	closest := ^uint64(0)
	for i := 0; i < readings; i++ {
		var raw syscall.Timespec
		before := read()
		_, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonicRaw, uintptr(unsafe.Pointer(&raw)), 0)
		after := read()
		if errno != 0 {
			return moment{}, false
		}
		if apart := after - before; apart < closest {
			closest = apart
			best = moment{before + apart/2, time.Duration(raw.Nano())}
		}
	}
	return best, true
}
