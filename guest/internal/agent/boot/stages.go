// Package boot turns a kernel with an initramfs into a machine with the image as its root.
//
// The agent is /init of an initramfs that holds modules and nothing else. It loads what the disks need, lays the sandbox's
// writable layer over the read-only image, enters the result, and goes on as process 1 there; its own file stays outside, so
// that an image needs nothing of ours.
package boot

import (
	"sync"
	"syscall"
	"unsafe"
)

// Stages notes when the parts of a boot were done, in ms since the kernel started.
type Stages struct {
	mutex sync.Mutex
	done  map[string]int64
}

// Done notes a stage.
func (s *Stages) Done(name string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.done == nil {
		s.done = map[string]int64{}
	}
	s.done[name] = UptimeMs()
}

// Snapshot gives all that are done.
func (s *Stages) Snapshot() map[string]int64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	stages := make(map[string]int64, len(s.done))
	for name, ms := range s.done {
		stages[name] = ms
	}
	return stages
}

// UptimeMs is the time since the kernel started, pauses included, as /proc/uptime has it.
func UptimeMs() int64 {
	const clockBoottime = 7 // CLOCK_BOOTTIME, linux/time.h; the call cannot fail for it
	var now syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&now)), 0)
	return now.Nano() / 1e6
}
