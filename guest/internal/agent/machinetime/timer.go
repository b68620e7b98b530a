// Package machinetime has timers for what waits for the host: they count the time in which this machine has run.
//
// A machine that the host pauses cannot be reached meanwhile, but on KVM its clocks, CLOCK_MONOTONIC too, go on: they are read
// from the host's (kvm-clock, TSC), and Firecracker does not set them back when it resumes. A timer of the runtime would fire
// as the first thing after a pause, before anybody can have come back.
package machinetime

import (
	"sync"
	"time"
)

const (
	// steps is the number of parts that a wait is divided into: a pause costs one at most.
	steps = 16
	// longestStep bounds what a pause costs of a long wait.
	longestStep = 10 * time.Second
	// leastLateness is how late the end of a part comes at least after which the machine stood still: a busy one is late as well.
	leastLateness = time.Second
)

// Timer calls a function once, unless it is stopped before.
type Timer struct {
	mutex   sync.Mutex
	current *time.Timer // nil: it has fired, or is stopped
	left    time.Duration
	do      func()
}

// AfterFunc is time.AfterFunc, for a time in which the machine runs.
func AfterFunc(wait time.Duration, do func()) *Timer {
	t := &Timer{left: wait, do: do}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.begin(stepOf(wait))
	return t
}

// Stop lets it not call any more. One that is calling just now is not waited for.
func (t *Timer) Stop() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.current != nil {
		t.current.Stop()
		t.current = nil
	}
}

// begin waits for a part of what is left. The mutex is held.
func (t *Timer) begin(step time.Duration) {
	if step > t.left {
		step = t.left
	}
	began := time.Now()
	t.current = time.AfterFunc(step, func() { t.end(step, time.Since(began)) })
}

// end is called after a part, which should have taken `step`.
func (t *Timer) end(step, took time.Duration) {
	t.mutex.Lock()
	if t.current == nil {
		t.mutex.Unlock()
		return
	}
	if t.left -= ran(step, took); t.left > 0 {
		t.begin(step)
		t.mutex.Unlock()
		return
	}
	t.current = nil
	t.mutex.Unlock()
	t.do()
}

func stepOf(wait time.Duration) time.Duration {
	step := wait / steps
	if step > longestStep {
		return longestStep
	}
	return step
}

// ran is how long the machine ran in a time that should have lasted a step.
func ran(step, took time.Duration) time.Duration {
	lateness := step
	if lateness < leastLateness {
		lateness = leastLateness
	}
	if took > step+lateness {
		return step
	}
	return took
}
