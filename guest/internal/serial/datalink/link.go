// Package datalink makes a reliable stream of bytes in each direction out of a line that loses, repeats, damages and mixes
// bytes, in the manner of QUIC's loss recovery (RFC 9002). protocol/SERIAL.md section 4 specifies it.
//
// One mutex guards everything, the streams above included, and is not held while the line is read or written. Two goroutines
// work: the reader decodes what came and hands it up at once; the writer pulls bytes down at the moment at which they can be
// written, so that nothing is ever queued in between. A timer runs only while something is awaited.
package datalink

import (
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"bandsox.dev/guest/internal/serial/frame"
)

// User is what lies above: the streams of package mux. All its methods are called with the link's mutex held.
type User interface {
	// Begin says that a session is there; nothing has been sent or received in it.
	Begin()
	// End says that it is gone, with all that was on its way.
	End(cause error)
	// Pending is about how many bytes Pull has to give.
	Pending() int
	// Pull fills in the next bytes to send, and says how many.
	Pull(to []byte) int
	// Receive takes the next bytes that came. An error ends the session.
	Receive(p []byte) error
}

// Settings of a Link.
type Settings struct {
	Guest bool // which end this is
	Text  bool // text-safe coding
	// Report hears what ended a session, and what the other side must not do. Called without the mutex.
	Report func(error)
	// Contain, when there is one, is deferred at the top of each goroutine, and recovers from a panic.
	Contain func(whileDoing string, release ...func())
}

// Link is one end.
type Link struct {
	sync.Mutex
	settings Settings
	pace     pace
	line     io.ReadWriteCloser
	user     User
	decoder  frame.Decoder
	work     *sync.Cond // the writer waits for something to write

	session  session
	sender   sender
	receiver receiver
	counts   Counts

	clock    clock
	timer    *time.Timer
	timerAt  time.Duration // 0: not set
	lastByte time.Duration // when the line last gave something
	nudgedAt time.Duration // or when the line last gave something
	nudges   int           // since it gave something

	writing bool // the writer is in the line's Write
	scratch []byte
	coded   []byte
	ack     ack
	frame   frame.Frame

	reports []error
	err     error
	done    chan struct{}
}

// pace is what depends on the kind of line.
type pace struct {
	window, mostWindow int
	payload            int
	probe              time.Duration // least time to an unasked retransmission
	hello              time.Duration // between two HELLOs
	quiet              time.Duration // after which a frame's missing rest is no longer waited for
	queue              time.Duration // the most that a window may last at the line's rate
	nudge              time.Duration // of silence, after which a guest says again what it has received; 0: never
	batch              int           // bytes of frames in one write, before coding
}

var (
	portPace = pace{
		window: 256 << 10, mostWindow: maxWindow, payload: frame.MaxPayload, batch: frame.MaxFrameBytes,
		probe: 20 * time.Millisecond, hello: 100 * time.Millisecond, quiet: 100 * time.Millisecond, queue: silence,
	}
	// A UART's window stays far below the Splitter's buffer, which drops what exceeds it. Where each byte is an exit of the machine, as in
	// Firecracker, a UART may carry 1 to 7 KB/s: 32 KiB would be a queue of half a minute, which a new stream's OPEN has to wait behind.
	uartPace = pace{
		window: minWindow, mostWindow: 32 << 10, payload: 1 << 10, batch: 2 << 10,
		probe: 200 * time.Millisecond, hello: 500 * time.Millisecond, quiet: 500 * time.Millisecond, queue: time.Second,
		nudge: time.Second,
	}
)

const (
	// mostProbe is up to what the wait for an answer is doubled; longestProbe is its bound on a line that takes longer to answer by itself,
	// so that at least two are sent before silence.
	mostProbe    = time.Second
	longestProbe = 5 * time.Second
	// lastNudge is the longest time between two nudges.
	lastNudge = time.Minute
	// silence is how long a host waits for any acknowledgement before it begins anew.
	silence = 15 * time.Second
	// lostEvery bounds how often a guest says LOST.
	lostEvery = 100 * time.Millisecond
)

// New makes an end; Start sets it to work.
func New(line io.ReadWriteCloser, settings Settings, user User) *Link {
	l := &Link{settings: settings, line: line, user: user, done: make(chan struct{}), pace: portPace}
	l.work = sync.NewCond(&l.Mutex)
	l.clock.began = time.Now()
	if settings.Text {
		l.pace = uartPace
		l.decoder = frame.NewTextDecoder()
	} else {
		l.decoder = frame.NewDecoder()
	}
	l.scratch = make([]byte, 0, 2*frame.MaxFrameBytes)
	l.ack.missing = make([]numbers, 0, maxRanges)
	return l
}

// Start begins to read and write the line.
func (l *Link) Start() {
	l.Lock()
	l.timer = time.AfterFunc(time.Hour, l.tick)
	l.timer.Stop()
	if !l.settings.Guest {
		l.greet()
	}
	l.unlock()
	go l.contained("reading a serial line", l.read)
	go l.contained("writing a serial line", l.write)
}

// contained keeps a fault of ours from ending the whole process, where its owner asks for that.
func (l *Link) contained(what string, work func()) {
	if l.settings.Contain != nil {
		defer l.settings.Contain(what)
	}
	work()
}

// Kick lets the writer look for work. The mutex is held.
func (l *Link) Kick() {
	if l.work != nil && !l.writing && l.sendable() {
		l.work.Signal()
	}
}

// Up says whether there is a session. The mutex is held.
func (l *Link) Up() bool { return l.session.up }

// Ended is what ended the link, nil while it works. The mutex is held.
func (l *Link) Ended() error { return l.err }

// Restart ends the session, and a host begins another. The mutex is held.
func (l *Link) Restart(cause error) { l.restart(cause) }

// Done is closed when the line has failed or Close was called; Err says which.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err is what ended the link, nil while it works.
func (l *Link) Err() error {
	l.Lock()
	defer l.Unlock()
	return l.err
}

// Close ends the link and closes the line.
func (l *Link) Close() error {
	l.Lock()
	defer l.Unlock()
	return l.fail(net.ErrClosed)
}

// fail ends everything, once. The mutex is held.
func (l *Link) fail(cause error) error {
	if l.err != nil {
		return nil
	}
	l.err = cause
	l.timer.Stop()
	l.session.up = false
	l.user.End(cause)
	close(l.done)
	l.work.Broadcast()
	return l.line.Close()
}

func (l *Link) report(err error) {
	if l.settings.Report != nil {
		l.reports = append(l.reports, err)
	}
}

// unlock releases the mutex and then tells what there is to report.
func (l *Link) unlock() {
	reports := l.reports
	l.reports = nil
	l.Unlock()
	for _, err := range reports {
		l.settings.Report(err)
	}
}

// read is the goroutine that takes in what the line gives.
func (l *Link) read() {
	l.Lock()
	for l.err == nil {
		space := l.decoder.Space()
		l.unlock()
		n, err := l.line.Read(space)
		l.Lock()
		if l.err != nil {
			break
		}
		if n > 0 {
			l.decoder.Advance(n)
			l.lastByte = l.clock.now()
			l.nudgedAt, l.nudges = l.lastByte, 0
			l.decode()
			l.armNudge()
		}
		if err != nil {
			if closing := l.fail(err); closing != nil {
				l.report(closing)
			}
		}
	}
	l.unlock()
}

// decode handles every frame that is complete.
func (l *Link) decode() {
	for l.err == nil && l.decoder.Next(&l.frame) {
		l.handle(&l.frame)
	}
	if l.decoder.Partial() {
		l.arm(l.lastByte + l.pace.quiet)
	}
	l.Kick()
}

// handle takes one good frame.
func (l *Link) handle(f *frame.Frame) {
	if f.FromGuest == l.settings.Guest {
		return // our own, echoed by a terminal that is not in raw mode
	}
	l.counts.FramesReceived++
	var err error
	switch {
	case f.Kind >= frame.Hello:
		l.greeting(f)
	case !l.session.up || f.Session != l.session.id:
		l.unknown(f.Session)
	case f.Kind == frame.Ack:
		if err = parseAck(f.Payload, &l.ack); err == nil {
			err = l.acknowledged(&l.ack)
		}
	default:
		var fresh bool
		before := l.receiver.next
		fresh, err = l.receiver.take(f, l.user.Receive)
		l.counts.BytesReceived += l.receiver.next - before
		if !fresh && err == nil {
			l.counts.FramesRepeated++
		}
	}
	if err != nil {
		l.report(err)
		l.restart(err)
	}
}

// write is the goroutine that gives frames to the line.
func (l *Link) write() {
	l.Lock()
	yielded := false
	for l.err == nil {
		if !l.sendable() {
			yielded = false
			l.work.Wait()
			continue
		}
		if !yielded && l.onlyAck() {
			// Whoever was given the bytes may be about to answer: then both go in one write.
			yielded = true
			l.Unlock()
			runtime.Gosched()
			l.Lock()
			continue
		}
		yielded = false
		batch := l.build()
		if len(batch) == 0 {
			l.work.Wait() // no room in the arena: an acknowledgement will make it
			continue
		}
		l.writing = true
		l.unlock()
		_, err := l.line.Write(batch)
		l.Lock()
		l.writing = false
		l.sender.lastSent = l.clock.now()
		if err != nil {
			if closing := l.fail(err); closing != nil {
				l.report(closing)
			}
		}
	}
	l.unlock()
}

// onlyAck says whether there is an ACK to send and nothing else.
func (l *Link) onlyAck() bool {
	return l.receiver.due && !l.session.greetingDue() && !l.dataSendable()
}

// sendable says whether build would give something.
func (l *Link) sendable() bool {
	if l.session.greetingDue() {
		return true
	}
	return l.session.up && (l.receiver.due || l.dataSendable())
}
