package tsc

import (
	"math"
	"runtime"
	"testing"
	"time"
)

func TestTheSameWhateverTheTime(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("no time stamp counter on " + runtime.GOARCH)
	}
	long := Start()
	const tries = 5
	closest := math.Inf(1)
	for i := 0; i < tries; i++ { // two readings may each be interrupted, on a host that is busy
		short := Start().KHz()
		if short == 0 {
			t.Fatal("not found out")
		}
		time.Sleep(20 * time.Millisecond)
		closest = math.Min(closest, math.Abs(float64(short)/float64(long.KHz())-1))
	}
	if closest > 250e-6 {
		t.Errorf("%.0f millionths apart, after %d tries", closest*1e6, tries)
	}
	if speed := long.KHz(); speed < 100_000 || speed > 20_000_000 {
		t.Errorf("no processor has a clock of %d kHz", speed)
	}
}

func TestNothingIsMeasuredWithoutAStart(t *testing.T) {
	if speed := (Stopwatch{}).KHz(); speed != 0 {
		t.Errorf("%d kHz from nothing", speed)
	}
}
