package execute

import (
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/wire"
)

// Bounds of the runner.
const (
	// frameBytes is the most of a command's output in one frame: what a Linux pipe holds, less the header, so that a frame
	// fills one vsock packet of 64 KiB and not a bit of a second.
	frameBytes = 65536 - wire.HeaderBytes
	// stragglerGrace is how long children left behind may still write (PROTOCOL.md section 3).
	stragglerGrace = 100 * time.Millisecond
	// startedDelay holds `started` back so that a quick command's whole answer is one write, which the end of a fork and exec
	// under emulation (5 ms) must fall into. The first output takes `started` along at once.
	startedDelay = 10 * time.Millisecond
	// batchBytes has room for `started`, a frame of each stream, and `exit`.
	batchBytes = 2*(wire.HeaderBytes+frameBytes) + 1024
)

var batches = sync.Pool{New: func() interface{} { b := make([]byte, 0, batchBytes); return &b }}

// terminalBytes is more than a terminal holds of what was written to it: the kernel has no call that counts it, as FIONREAD
// does for a pipe, but keeps to 8 KiB on the way and 4 KiB at the end (drivers/tty/pty.c, n_tty.c).
const terminalBytes = 65536

// stream is the agent's end of one of the command's output pipes, or of its terminal.
type stream struct {
	kind       wire.Kind
	fd         int
	open       bool
	isTerminal bool
}

func (s *stream) close() {
	if s.open {
		s.open = false
		closeFD(s.fd)
	}
}

// runner is what run needs while it runs.
type runner struct {
	*Command
	batch []byte // whole frames that wait to be written
	gone  bool   // the connection does not take any more, and there will be no other one
	// greeting is how much of the batch is `started`. Only a job's runner counts it.
	greeting int
}

// run delivers the output until the command has ended, then the rest of it, then `exit`.
func (c *Command) run() {
	pooled := batches.Get().(*[]byte)
	defer batches.Put(pooled)
	r := &runner{Command: c, batch: (*pooled)[:0]}
	defer closeFD(c.child.PidFD)
	defer c.watch.close()
	defer c.letGo()
	defer c.closeOwn()

	r.append(wire.Started{Type: "started", Pid: c.child.Pid})
	r.greeting = len(r.batch)
	ended := c.watch.wait(startedDelay)
	r.copyReady()
	for !ended {
		r.flush()
		ended = c.watch.wait(forever)
		r.copyReady()
	}
	c.reaper.Collect() // the pidfd said so: no need to wait for the signal to come round
	<-c.child.Ended()
	c.letGo()
	c.watch.forget(c.child.PidFD)
	r.drain()
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.input != nil {
		c.input.stop()
	}
	if c.job != nil {
		r.finishJob()
		return
	}
	r.append(c.exit())
	atomic.StoreInt32(&c.ended, 1) // before the host can know, as its next operation may follow at once
	r.flush()
}

// exit says how the command ended.
func (c *Command) exit() wire.Exit {
	status := c.child.Status()
	exit := wire.Exit{Type: "exit"}
	if status.Signaled() {
		exit.Signal = nameOfSignal(status.Signal())
		exit.TimedOut = status.Signal() == syscall.SIGKILL && atomic.LoadInt32(&c.timedOut) != 0
	} else {
		code := status.ExitStatus()
		exit.Code = &code
	}
	return exit
}

// drain delivers what the command itself wrote: all that was in the pipes or the terminal when it had ended. What its children
// add is taken for stragglerGrace only.
func (r *runner) drain() {
	for i := range r.streams {
		s := &r.streams[i]
		left := r.inPipe(s) // a terminal says that it is empty only when nothing is on its way through it either (n_tty_read)
		for s.open && left > 0 {
			n := r.copyFrom(s, left)
			if n == 0 {
				break
			}
			left -= n
		}
		r.copyFrom(s, frameBytes) // at its end, unless a child holds it
	}
	deadline := time.Now().Add(stragglerGrace)
	for !r.gone && r.isOpen() {
		left := time.Until(deadline)
		if left <= 0 {
			return
		}
		r.flush()
		r.watch.wait(left)
		r.copyReady()
	}
}

// isOpen says whether anybody may still write.
func (r *runner) isOpen() bool {
	for _, s := range r.streams {
		if s.open {
			return true
		}
	}
	return false
}

// copyReady takes what each stream has, one frame each at most.
func (r *runner) copyReady() {
	for i := range r.streams {
		r.copyFrom(&r.streams[i], frameBytes)
	}
}

// copyFrom appends a frame of at most limit bytes of a stream to the batch and gives their number. A pipe that has nothing
// gives 0; at its end the stream is closed.
func (r *runner) copyFrom(s *stream, limit int) int {
	if !s.open {
		return 0
	}
	if limit > frameBytes {
		limit = frameBytes
	}
	if len(r.batch)+wire.HeaderBytes+limit > cap(r.batch) {
		r.flush()
	}
	start := len(r.batch)
	payload := r.batch[start+wire.HeaderBytes : start+wire.HeaderBytes+limit]
	for {
		n, err := syscall.Read(s.fd, payload)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return 0
		case s.isTerminal && isHungUp(err):
			r.end(s)
			return 0
		case err != nil:
			console.Printf("cannot read a command's output: %v", err)
			r.end(s)
			return 0
		case n == 0:
			r.end(s)
			return 0
		}
		r.batch = r.batch[:start+wire.HeaderBytes+n]
		wire.PutHeader(r.batch[start:], s.kind, n)
		return n
	}
}

// end closes a stream that gives nothing more.
func (r *runner) end(s *stream) {
	r.watch.forget(s.fd)
	s.close()
}

// flush writes the batch. It waits for a slow host, and so for as long the command's pipes fill and slow the command.
func (r *runner) flush() {
	if r.job != nil {
		r.gone = !r.job.write(r.batch, r.greeting, nil) || r.gone
		r.greeting = 0
		r.batch = r.batch[:0]
		return
	}
	if len(r.batch) > 0 && !r.gone {
		if err := r.out.WriteFrames(r.batch); err != nil {
			r.gone = true // who reads from the connection learns of it too; here nobody is left to write to
			r.kill()
		}
	}
	r.batch = r.batch[:0]
}

// finishJob is the end of a command that outlives its connection: `exit` is kept as well.
func (r *runner) finishJob() {
	output := len(r.batch)
	r.append(r.exit())
	r.job.write(r.batch, r.greeting, r.batch[output:])
	r.job.finished()
}

func (r *runner) append(message interface{}) {
	frames, err := wire.AppendMessage(r.batch, message)
	if err != nil {
		console.Printf("cannot tell the host of a command: %v", err)
		r.hangUp()
		return
	}
	r.batch = frames
}

// inPipe asks how much a stream's pipe holds; of a terminal it gives a bound.
func (r *runner) inPipe(s *stream) int {
	if !s.open {
		return 0
	}
	if s.isTerminal {
		return terminalBytes
	}
	var bytes int32
	const fionread = 0x541b // asm-generic/ioctls.h
	if err := ioctl(s.fd, fionread, unsafe.Pointer(&bytes)); err != nil {
		console.Printf("cannot ask a pipe for its content: %v", err)
		return frameBytes
	}
	return int(bytes)
}
