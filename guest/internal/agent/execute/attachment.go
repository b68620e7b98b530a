package execute

import (
	"bandsox.dev/guest/internal/wire"
)

// Attachment is one connection's part in a command that has a name: an `exec` or `attach` operation.
type Attachment struct {
	job     *job
	out     *wire.Writer
	hangUp  func()
	isFirst bool // it began the command, and has `started` from the runner

	// What follows belongs to job.mutex.

	ready       bool  // it has all that was kept when it came: from now on the runner writes to it
	ended       bool  // `exit` is written to it, or about to be
	sent        int64 // how much output it has, or had from connections before
	inputOffset int64 // how much input had arrived when it came
	repeated    int64 // input that comes a second time, behind a second `exec`
}

// Data takes a piece of standard input.
func (a *Attachment) Data(payload []byte, rest int) error {
	a.job.mutex.Lock()
	defer a.job.mutex.Unlock()
	if a.job.present != a {
		return nil // another connection has taken over, and this one is being closed
	}
	if a.repeated > 0 {
		size := int64(len(payload))
		if size > a.repeated {
			size = a.repeated
		}
		a.repeated -= size
		if payload = payload[size:]; len(payload) == 0 {
			return nil
		}
	}
	return a.job.command.Data(payload, rest)
}

// Message takes a message that arrives while the command runs, or before the host knows its end.
func (a *Attachment) Message(message wire.Message) error {
	j, command := a.job, a.job.command
	j.mutex.Lock()
	if j.present != a {
		j.mutex.Unlock()
		return nil
	}
	switch message.Type {
	case "ack":
		defer j.mutex.Unlock()
		return a.acknowledge(message.Integer("offset", 0))
	case "eof":
		defer j.mutex.Unlock()
		if command.input != nil {
			if _, atEnd := command.input.arrived(); atEnd {
				return nil // the host does not know what has arrived
			}
		}
		return command.Message(message)
	case "abort":
		j.aborted = true
		j.mutex.Unlock()
		command.kill()
		return nil
	}
	j.mutex.Unlock()
	return command.Message(message)
}

// acknowledge drops output that the host has. The job's mutex is held.
func (a *Attachment) acknowledge(offset int64) error {
	j := a.job
	if offset < j.kept.from || offset > a.sent {
		return wire.Violatef(wire.MessageInvalid, "ack of %d after %d, with %d sent", offset, j.kept.from, a.sent)
	}
	j.kept.forget(offset)
	j.changed.Signal()
	return nil
}

// Ended says whether the operation is over, as far as the host can know.
func (a *Attachment) Ended() bool {
	a.job.mutex.Lock()
	defer a.job.mutex.Unlock()
	return a.ended
}

// Cancel is called when the connection has ended by the host's fault: the command is killed.
func (a *Attachment) Cancel() { a.job.leave(a, false) }

// Leave is called when the connection is lost: the command waits for another one.
func (a *Attachment) Leave() { a.job.leave(a, true) }

// Confirm is called when the host has read `exit`.
func (a *Attachment) Confirm() { a.job.table.forget(a.job) }

// CrossedBy says whether the host may have sent this before it saw `exit`.
func (a *Attachment) CrossedBy(frame wire.Frame) bool {
	return a.job.command.CrossedBy(frame) || frame.Message.Type == "ack" || frame.Message.Type == "abort"
}

// catchUp answers the operation, and writes what was kept from an offset on. Until it is done, the runner and the pump of the
// input wait.
func (a *Attachment) catchUp(offset int64, again bool) {
	j := a.job
	j.writing.Lock() // a write to the connection before has ended: it was closed
	defer j.writing.Unlock()
	pooled := batches.Get().(*[]byte)
	defer batches.Put(pooled)
	frames, err := a.greeting((*pooled)[:0], offset, again)
	for done := false; err == nil && !done; frames = frames[:0] {
		var mine bool
		if frames, done, mine = a.next(frames); !mine {
			return
		}
		err = a.out.WriteFrames(frames)
	}
	if err != nil {
		a.hangUp() // its reader leaves the job
	}
}

// greeting is the first of the answer, and how much of the input is taken: the connection before may not have been told.
func (a *Attachment) greeting(frames []byte, offset int64, again bool) ([]byte, error) {
	command := a.job.command
	var answer interface{} = wire.Attached{Type: "attached", Pid: command.child.Pid, Offset: offset, InputOffset: a.inputOffset}
	if again {
		answer = wire.Started{Type: "started", Pid: command.child.Pid}
	}
	frames, err := wire.AppendMessage(frames, answer)
	if err != nil || command.input == nil {
		return frames, err
	}
	if taken := command.input.acknowledged(); taken > 0 {
		frames, err = wire.AppendMessage(frames, wire.Ack{Type: "ack", Offset: taken})
	}
	return frames, err
}

// next adds kept output to frames, and behind the last of it `exit`. It says whether that was all, and whether this is still the
// present connection.
func (a *Attachment) next(frames []byte) (_ []byte, done, mine bool) {
	j := a.job
	j.mutex.Lock()
	defer j.mutex.Unlock()
	if j.present != a {
		return frames, false, false
	}
	frames, a.sent = j.kept.appendFrames(frames, a.sent)
	if a.sent < j.kept.to() {
		return frames, false, true
	}
	a.ready = true
	if j.exit != nil {
		a.ended = true
		frames = append(frames, j.exit...)
	}
	return frames, true, true
}
