package execute

import (
	"sync"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/agent/machinetime"
	"bandsox.dev/guest/internal/wire"
)

// job is a command that has a name and so outlives its connection (PROTOCOL.md section 5). It stands between the runner, which
// stays the only one who adds output, and the connections that come one after another: it keeps what the host has not
// acknowledged, and passes it on to the one that is present.
type job struct {
	name    string
	keep    time.Duration // how long it waits for a connection
	table   *Jobs
	command *Command      // set before begun is closed
	begun   chan struct{} // closed when the command runs, or could not be started
	failed  bool          // it could not be started. Set before begun is closed

	// writing is held by who writes to the present connection, so that its answers have an order, and by who adds output. It is
	// taken before mutex, and held for as long as the host does not read.
	writing sync.Mutex

	mutex    sync.Mutex
	changed  *sync.Cond  // there is room for output, or no use for it
	present  *Attachment // nil: nobody
	kept     kept
	exit     []byte // its frame; nil: the command runs
	attached bool   // an `attach` has come: the host has seen `started`
	aborted  bool   // the host has given it up, and will not come again
	gone     bool   // it has been given up, or forgotten: nobody can attach, and output has no use
	// unattended says that its host is another machine's: it waits for a connection for ever, and while there is none it keeps the end of
	// its output only.
	unattended bool
	timer      *machinetime.Timer
	waits      int // tells a timer of an earlier waiting from the present one's
}

func newJob(name string, keep time.Duration, table *Jobs) *job {
	j := &job{name: name, keep: keep, table: table, begun: make(chan struct{})}
	j.changed = sync.NewCond(&j.mutex)
	return j
}

// write keeps the output in whole frames, and passes them on if somebody is there; exit, the last frame, ends the answer. The
// first greeting bytes are `started`, which only the connection that began the command has not had. It waits while too much is
// not acknowledged. False says that output has no use any more.
func (j *job) write(frames []byte, greeting int, exit []byte) bool {
	if len(frames) == 0 {
		return true
	}
	j.waitForRoom(outputBytes(frames))
	j.writing.Lock()
	defer j.writing.Unlock()
	a, useful := j.add(frames, exit)
	if a == nil {
		return useful
	}
	if !a.isFirst {
		frames = frames[greeting:]
	}
	if len(frames) > 0 {
		if err := a.out.WriteFrames(frames); err != nil {
			a.hangUp() // its reader leaves the job; what was written is kept
		}
	}
	return useful
}

// waitForRoom waits until so much more may be kept, or makes room where nobody is expected to. Nobody else adds to it.
func (j *job) waitForRoom(bytes int) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	for !j.gone && j.excess(bytes) > 0 {
		if j.unattended && j.present == nil {
			j.kept.forget(j.kept.from + j.excess(bytes))
			return
		}
		j.changed.Wait()
	}
}

// excess is how much would be kept too much with so much more.
func (j *job) excess(bytes int) int64 {
	return j.kept.to() - j.kept.from + int64(bytes) - maxKeptBytes
}

// add keeps output, and gives the connection that is to have it at once.
func (j *job) add(frames, exit []byte) (to *Attachment, useful bool) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	if j.gone {
		return nil, false
	}
	j.kept.addFrames(frames)
	if exit != nil {
		j.exit = append([]byte(nil), exit...)
	}
	a := j.present
	if a == nil || !a.ready {
		return nil, true
	}
	a.sent = j.kept.to()
	a.ended = exit != nil // before the host can know, as its next operation may follow at once
	return a, true
}

// finished is called when the command's whole answer was written, or kept.
func (j *job) finished() {
	j.mutex.Lock()
	bytes := j.kept.compact()
	forget := j.gone || j.keep == 0 && !j.unattended
	if !forget && j.present == nil && !j.unattended {
		j.startTimer()
	}
	j.mutex.Unlock()
	if forget {
		j.table.forget(j)
		return
	}
	j.table.keepFinished(j, bytes)
}

// WriteMessage passes an acknowledgement of input on, if somebody is there. Who comes later is told anyway.
func (j *job) WriteMessage(message interface{}) error {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mutex.Lock()
	a := j.present
	if a != nil && (!a.ready || a.ended) {
		a = nil
	}
	j.mutex.Unlock()
	if a != nil {
		if err := a.out.WriteMessage(message); err != nil {
			a.hangUp()
		}
	}
	return nil
}

// errGone says that a job can no longer be attached to.
var errGone = failure.New(failure.JobUnknown, "cannot attach to a command: it is not known (any more)")

// oldest is the offset of an `attach` that takes what there is.
const oldest = -1

// attach makes a connection the present one; the one before is closed. again is an `exec` and not an `attach`.
func (j *job) attach(a *Attachment, offset int64, again bool) error {
	j.mutex.Lock()
	if offset == oldest {
		offset = j.kept.from
	}
	switch {
	case j.gone:
		j.mutex.Unlock()
		return errGone
	case again && (j.attached || j.kept.from > 0):
		j.mutex.Unlock()
		return wire.Violatef(wire.MessageInvalid, "exec of a job of which the host has seen the start")
	case offset < j.kept.from || offset > j.kept.to():
		j.mutex.Unlock()
		return wire.Violatef(wire.MessageInvalid, "attach at %d, with %d acknowledged and %d written", offset, j.kept.from, j.kept.to())
	}
	before := j.present
	j.stopTimer()
	j.present, a.sent = a, offset
	if j.command.input != nil {
		a.inputOffset, _ = j.command.input.arrived() // no more comes from the connection before
	}
	if again {
		a.repeated = a.inputOffset
	} else {
		j.attached = true
		j.kept.forget(offset)
		j.changed.Signal()
	}
	j.mutex.Unlock()
	if before != nil {
		before.hangUp() // which also ends a write that waits for its host
	}
	go func() {
		defer console.Contain("attaching to a command", a.hangUp)
		a.catchUp(offset, again)
	}()
	return nil
}

// leave is called when a connection has ended: lost, or by the host's fault.
func (j *job) leave(a *Attachment, lost bool) {
	j.mutex.Lock()
	if j.present != a {
		j.mutex.Unlock()
		return
	}
	j.present = nil
	if lost && (j.keep > 0 || j.unattended) && !j.aborted && !j.gone {
		if !j.unattended {
			j.startTimer()
		}
		j.changed.Signal() // an unattended one waits for nobody
		j.mutex.Unlock()
		return
	}
	over := j.exit != nil
	j.giveUp()
	j.mutex.Unlock()
	j.dropped(over)
}

// leaveUnattended lets it run on without a host: the one that it had is another machine's, and does not know of this one.
func (j *job) leaveUnattended() {
	j.mutex.Lock()
	j.unattended = true
	j.stopTimer()
	before := j.present
	j.present = nil
	j.changed.Signal()
	j.mutex.Unlock()
	if before != nil {
		before.hangUp()
	}
}

// describe tells of it. now is the machine's uptime.
func (j *job) describe(nowMs int64) wire.Job {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	command := j.command
	startedMs := nowMs - time.Since(command.startedAt).Milliseconds()
	if startedMs < 0 {
		startedMs = 0 // two clocks
	}
	return wire.Job{
		Job: j.name, Pid: command.child.Pid, Command: command.preview, Pty: command.terminal != nil,
		StartedMs: startedMs, From: j.kept.from, To: j.kept.to(), Ended: j.exit != nil, Attached: j.present != nil,
	}
}

// giveUp makes output useless. The mutex is held; dropped follows.
func (j *job) giveUp() {
	j.gone = true
	j.kept = kept{from: j.kept.to()}
	j.changed.Signal()
}

// dropped ends a job that was given up.
func (j *job) dropped(over bool) {
	if over {
		j.table.forget(j)
		return
	}
	j.command.kill()
}

// startTimer begins to wait for a connection. The mutex is held.
func (j *job) startTimer() {
	j.stopTimer()
	waits := j.waits
	j.timer = machinetime.AfterFunc(j.keep, func() { j.expire(waits) })
}

// stopTimer ends the waiting. The mutex is held.
func (j *job) stopTimer() {
	j.waits++
	if j.timer != nil {
		j.timer.Stop()
		j.timer = nil
	}
}

// expire gives up a job that nobody came back for.
func (j *job) expire(waits int) {
	j.mutex.Lock()
	if j.waits != waits || j.gone {
		j.mutex.Unlock()
		return
	}
	over := j.exit != nil
	j.giveUp()
	j.mutex.Unlock()
	j.dropped(over)
}

// release frees what a forgotten job keeps, unless a connection has not had all of it yet.
func (j *job) release() {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	j.stopTimer()
	j.gone = true
	if j.present == nil || j.present.ended {
		j.kept = kept{}
		j.exit = nil
	}
}

// hangUp ends the present connection when the command's own end cannot be told.
func (j *job) hangUp() {
	j.mutex.Lock()
	a := j.present
	j.present = nil
	j.giveUp()
	j.mutex.Unlock()
	j.table.forget(j)
	if a != nil {
		a.hangUp()
	}
}
