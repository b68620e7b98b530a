package execute

import (
	"os"
	"sync"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/wire"
)

// windowBytes is how much input the host may send ahead of an acknowledgement (PROTOCOL.md section 3), and so the most that
// waits here. Without it a command that does not read would block a `signal` behind its input.
const windowBytes = 262144

// pieceBytes is what one write to the command's pipe takes at most: half of a Linux pipe, so that acknowledgements go out
// while the command reads.
const pieceBytes = 32768

// sink takes a command's standard input to it.
type sink interface {
	// Write waits for the command to read. An error says that nobody will.
	Write(data []byte) (int, error)
	// End tells the command that no more comes.
	End()
	// Close also ends a Write that waits. Closing twice is expected.
	Close() error
}

// acknowledger tells the host how much of the input is taken. A connection's *wire.Writer is one.
type acknowledger interface {
	// WriteMessage fails when no further acknowledgement will be heard.
	WriteMessage(message interface{}) error
}

// input is a command's standard input: what the host has sent and the command has not taken.
type input struct {
	to   sink
	out  acknowledger
	done chan struct{} // closed when pump has ended

	mutex    sync.Mutex
	changed  *sync.Cond
	waiting  []byte
	received int64
	taken    int64
	atEnd    bool // the host has sent eof
	stopped  bool // the command has ended
}

func newInput(to sink, out acknowledger) *input {
	i := &input{to: to, out: out, done: make(chan struct{})}
	i.changed = sync.NewCond(&i.mutex)
	return i
}

// take queues input.
func (i *input) take(data []byte) error {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	i.received += int64(len(data))
	switch {
	case i.atEnd:
		return wire.Violatef(wire.MessageInvalid, "input after eof")
	case i.received-i.taken > windowBytes:
		return wire.Violatef(wire.MessageInvalid, "more than %d bytes of input not acknowledged", windowBytes)
	}
	if i.stopped {
		return nil // a command with a job is kept for a while after its end: not its input
	}
	i.waiting = append(i.waiting, data...)
	i.changed.Signal()
	return nil
}

// end notes that no more comes.
func (i *input) end() error {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	if i.atEnd {
		return wire.Violatef(wire.MessageInvalid, "a second eof")
	}
	i.atEnd = true
	i.changed.Signal()
	return nil
}

// arrived says how much input the host has sent, and whether it has sent eof.
func (i *input) arrived() (bytes int64, atEnd bool) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	return i.received, i.atEnd
}

// acknowledged says how much input is taken.
func (i *input) acknowledged() int64 {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	return i.taken
}

// stop drops what waits. When it returns, no more acknowledgement will be written.
func (i *input) stop() {
	i.mutex.Lock()
	i.stopped = true
	i.waiting = nil
	i.changed.Signal()
	i.mutex.Unlock()
	i.close() // ends a write that waits for the command to read
	<-i.done
}

// pump gives the command what waits, at its own pace, and acknowledges it.
func (i *input) pump() {
	defer close(i.done)
	reads := true // until the command closes its input; from then on nobody will read, and everything counts as taken
	for {
		batch := i.next()
		if batch == nil {
			i.to.End()
			return
		}
		for len(batch) > 0 {
			piece := batch
			if len(piece) > pieceBytes {
				piece = piece[:pieceBytes]
			}
			batch = batch[len(piece):]
			if reads {
				// EPIPE, or a hang-up, or it was closed by stop: none is an error of the host's.
				_, err := i.to.Write(piece)
				reads = err == nil
			}
			if !i.acknowledge(len(piece)) {
				return
			}
		}
	}
}

// next waits for input; nil says that there will be none.
func (i *input) next() []byte {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	for len(i.waiting) == 0 && !i.atEnd && !i.stopped {
		i.changed.Wait()
	}
	if i.stopped || len(i.waiting) == 0 {
		return nil
	}
	batch := i.waiting
	i.waiting = nil
	return batch
}

func (i *input) acknowledge(bytes int) bool {
	i.mutex.Lock()
	i.taken += int64(bytes)
	offset, stopped := i.taken, i.stopped
	i.mutex.Unlock()
	// A failed write means that the connection ended, which the one who reads from it acts on.
	return !stopped && i.out.WriteMessage(wire.Ack{Type: "ack", Offset: offset}) == nil
}

// close lets go of the sink. Closing twice (eof, then the command's end) is expected.
func (i *input) close() {
	if err := i.to.Close(); err != nil && !isClosed(err) {
		console.Printf("cannot close a command's input: %v", err)
	}
}

// pipe is the end of standard input that is no terminal.
type pipe struct{ *os.File }

// End closes it, which is how a pipe says that no more comes.
func (p pipe) End() {
	if err := p.Close(); err != nil && !isClosed(err) {
		console.Printf("cannot close a command's input: %v", err)
	}
}
