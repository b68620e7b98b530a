// Package forward passes the bytes of one TCP connection of the guest to the host and back: PROTOCOL.md section 6.
//
// Three goroutines share a connection. The connection's reader brings what the host says, and never waits for the guest's side,
// so that it hears of an abort and of the link's end at any time: input is queued, and the host's window bounds the queue. The
// receiver connects, and takes what comes from the guest's side to the host, as far as the host's acks let it. The sender writes
// the queue to the guest's side. So neither direction ever waits for the other.
package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/wire"
)

const (
	defaultHost    = "127.0.0.1"
	connectTimeout = 10 * time.Second
	// windowBytes is what either side may have sent and not heard an `ack` of (PROTOCOL.md section 6): the most that waits here.
	windowBytes = 131072
	// ackEveryBytes leaves the host three quarters of the window while an ack is under way.
	ackEveryBytes = windowBytes / 4
	// chunkBytes is the largest data frame sent.
	chunkBytes = 65536
	// maxForwards leaves some of the connections that the server takes to everything else: who forwards a busy port must be able
	// to run a command as well.
	maxForwards = 384
)

// open counts the forwarded connections of this process.
var open int32 // atomic

// Forward is one `connect` operation.
type Forward struct {
	out    *wire.Writer
	hangUp func()
	cancel context.CancelFunc

	// answering is held over each write to the host, so that nothing follows the last answer. It is taken before mutex.
	answering sync.Mutex

	mutex     sync.Mutex
	changed   *sync.Cond
	conn      *net.TCPConn // nil until connected
	waiting   []byte       // from the host, not yet written to conn
	received  int64
	delivered int64 // taken by conn
	acked     int64
	hostEnd   bool  // the host's eof has come
	endAcked  bool  // and was passed on
	sent      int64 // to the host
	hostAcked int64
	guestEnd  bool // ours is sent
	lost      error
	over      bool
}

// Start begins to connect. hangUp ends the connection of the link: it is called when nothing sensible can be sent.
func Start(message wire.Message, out *wire.Writer, hangUp func()) (*Forward, error) {
	if atomic.AddInt32(&open, 1) > maxForwards {
		atomic.AddInt32(&open, -1)
		return nil, failure.New(failure.ConnectionFailed, "cannot connect: %d connections are forwarded already", maxForwards)
	}
	host := message.Text("host")
	if host == "" {
		host = defaultHost
	}
	address := net.JoinHostPort(host, strconv.FormatInt(message.Integer("port", 0), 10))
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	f := &Forward{out: out, hangUp: hangUp, cancel: cancel}
	f.changed = sync.NewCond(&f.mutex)
	go func() {
		defer console.Contain("forwarding a connection", f.abandon)
		defer atomic.AddInt32(&open, -1)
		defer cancel()
		f.run(ctx, address)
	}()
	return f, nil
}

// Data queues bytes for the guest's side.
func (f *Forward) Data(payload []byte, rest int) error {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.received += int64(len(payload))
	switch {
	case f.over || f.lost != nil:
		return nil // on its way when we gave up
	case f.conn == nil:
		return wire.Violatef(wire.MessageInvalid, "data before the connection is there")
	case f.hostEnd:
		return wire.Violatef(wire.MessageInvalid, "data after eof")
	case f.received-f.acked > windowBytes:
		return wire.Violatef(wire.MessageInvalid, "more than %d bytes not acknowledged", windowBytes)
	}
	f.waiting = append(f.waiting, payload...)
	f.changed.Broadcast()
	return nil
}

// Message takes the host's eof or abort.
func (f *Forward) Message(message wire.Message) error {
	switch message.Type {
	case "eof":
		return f.endOfHost()
	case "ack":
		return f.acknowledged(message.Integer("offset", 0))
	case "abort":
		if f.end(failure.New(failure.Aborted, "the host gave the connection up")) {
			f.reset()
		}
		return nil
	}
	return wire.Violatef(wire.MessageInvalid, "%s while a connection is forwarded", message.Type)
}

// acknowledged lets the receiver go on.
func (f *Forward) acknowledged(offset int64) error {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if offset < f.hostAcked || offset > f.sent {
		return wire.Violatef(wire.MessageInvalid, "an ack of %d after %d, of %d sent", offset, f.hostAcked, f.sent)
	}
	f.hostAcked = offset
	f.changed.Broadcast()
	return nil
}

func (f *Forward) endOfHost() error {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	switch {
	case f.over || f.lost != nil:
		return nil
	case f.conn == nil:
		return wire.Violatef(wire.MessageInvalid, "eof before the connection is there")
	case f.hostEnd:
		return wire.Violatef(wire.MessageInvalid, "a second eof")
	}
	f.hostEnd = true
	f.changed.Broadcast()
	return nil
}

// Ended says whether the operation is over, as far as the host can know.
func (f *Forward) Ended() bool {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.over
}

// CrossedBy says whether the host may have sent this before it saw the last answer.
func (f *Forward) CrossedBy(frame wire.Frame) bool {
	if frame.Kind == wire.KindData {
		return true
	}
	switch frame.Message.Type {
	case "eof", "ack", "abort":
		return true
	}
	return false
}

// Cancel is called when the connection of the link has ended. A forward that is over may still write what it has taken.
func (f *Forward) Cancel() {
	f.mutex.Lock()
	wasOver := f.over
	f.over = true
	f.changed.Broadcast()
	f.mutex.Unlock()
	if !wasOver {
		f.cancel()
		f.reset()
	}
}

func (f *Forward) abandon() {
	f.Cancel()
	f.hangUp()
}

// settle ends the operation once both sides have ended and the host's end is acknowledged. Under mutex.
func (f *Forward) settle() {
	if f.guestEnd && f.endAcked {
		f.over = true
	}
}

// run connects, and then receives.
func (f *Forward) run(ctx context.Context, address string) {
	dialer := net.Dialer{}
	dialed, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		f.end(connectFailure(err, address))
		return
	}
	conn := dialed.(*net.TCPConn) // of the network "tcp" there is no other
	defer closeQuietly(conn)
	if !f.begin(conn) {
		resetConn(conn)
		return
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		defer console.Contain("writing to a forwarded connection", f.abandon)
		f.send()
	}()
	f.receive(address)
	<-sent // it ends with the host's eof, a failure, or a reset
}

// begin tells the host that the connection is there. It says whether anybody still wants it.
func (f *Forward) begin(conn *net.TCPConn) bool {
	f.answering.Lock()
	defer f.answering.Unlock()
	f.mutex.Lock()
	wanted := !f.over
	if wanted {
		f.conn = conn
	}
	f.mutex.Unlock()
	if !wanted {
		return false
	}
	if err := f.out.WriteMessage(wire.Typed{Type: "connected"}); err != nil {
		f.Cancel()
		return false
	}
	return true
}

// receive takes what the guest's side says to the host, until either ends.
func (f *Forward) receive(address string) {
	buffer := make([]byte, wire.HeaderBytes+chunkBytes)
	for {
		room := f.room()
		if room == 0 {
			return
		}
		n, err := f.conn.Read(buffer[wire.HeaderBytes : wire.HeaderBytes+room])
		if n > 0 {
			wire.PutHeader(buffer, wire.KindData, n)
			f.mutex.Lock()
			f.sent += int64(n) // first: the ack may be here before the write returns
			f.mutex.Unlock()
			if !f.answer(func() error { return f.out.WriteFrames(buffer[:wire.HeaderBytes+n]) }) {
				return
			}
		}
		if err == nil {
			continue
		}
		f.mutex.Lock()
		lost := f.lost
		f.mutex.Unlock()
		switch {
		case lost != nil: // what the guest's side had said before is delivered now
			f.end(brokenFailure(lost, address))
			f.reset()
		case errors.Is(err, io.EOF):
			f.endOfGuest(address)
		default:
			f.end(brokenFailure(err, address))
			f.reset()
		}
		return
	}
}

// room waits until the host takes something, and says how much. 0: the operation is over.
func (f *Forward) room() int {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	for f.sent-f.hostAcked >= windowBytes && !f.over {
		f.changed.Wait()
	}
	room := windowBytes - int(f.sent-f.hostAcked)
	switch {
	case f.over:
		return 0
	case room > chunkBytes:
		return chunkBytes
	}
	return room
}

// endOfGuest sends our eof. A write that failed in this moment finds nobody who reads, so it is told from here.
func (f *Forward) endOfGuest(address string) {
	f.answer(func() error {
		f.mutex.Lock()
		lost := f.lost
		f.guestEnd = lost == nil
		f.settle()
		f.over = f.over || lost != nil
		f.changed.Broadcast()
		f.mutex.Unlock()
		if lost != nil {
			return f.out.WriteMessage(failure.ToMessage(brokenFailure(lost, address)))
		}
		return f.out.WriteMessage(wire.Typed{Type: "eof"})
	})
}

// send writes what the host says to the guest's side.
func (f *Forward) send() {
	for {
		piece, atEnd := f.next()
		if piece == nil {
			if !atEnd {
				return
			}
			if err := f.conn.CloseWrite(); err != nil {
				f.lose(err)
				return
			}
			f.taken(0, true)
			return
		}
		if _, err := f.conn.Write(piece); err != nil {
			f.lose(err)
			return
		}
		if !f.taken(len(piece), false) {
			return
		}
	}
}

// next waits for bytes. nil is the end: of the host's bytes, or of everything.
func (f *Forward) next() (piece []byte, atEnd bool) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	for len(f.waiting) == 0 && !f.hostEnd && !f.over {
		f.changed.Wait()
	}
	if len(f.waiting) == 0 {
		return nil, f.hostEnd && !f.over
	}
	size := len(f.waiting)
	if size > ackEveryBytes {
		size = ackEveryBytes
	}
	piece = f.waiting[:size:size]
	f.waiting = f.waiting[size:]
	if len(f.waiting) == 0 {
		f.waiting = nil
	}
	return piece, false
}

// taken tells the host of bytes that the guest's side has taken, when it is time to. It says whether to go on.
func (f *Forward) taken(size int, isLast bool) bool {
	f.mutex.Lock()
	f.delivered += int64(size)
	due := f.delivered-f.acked >= ackEveryBytes || isLast
	f.mutex.Unlock()
	if !due {
		return true
	}
	return f.answer(func() error {
		f.mutex.Lock()
		f.acked = f.delivered
		if !isLast && f.acked == f.received {
			f.acked-- // all of it means that the host's end has been passed on, too
		}
		f.endAcked = isLast
		f.settle()
		offset := f.acked
		f.mutex.Unlock()
		return f.out.WriteMessage(wire.Ack{Type: "ack", Offset: offset})
	})
}

// lose notes that nothing can be written any more. The receiver tells the host, behind what it still finds to read; when it has
// ended already, nobody else would.
func (f *Forward) lose(cause error) {
	f.mutex.Lock()
	f.lost = cause
	f.waiting = nil
	told := f.guestEnd
	f.mutex.Unlock()
	if told {
		f.end(brokenFailure(cause, f.conn.RemoteAddr().String()))
		return
	}
	// A peer that only took back its right to hear leaves the receiver waiting for ever.
	_ = f.conn.CloseRead() // it fails where the connection is gone, and then the receiver knows
}

// answer writes to the host, unless the operation is over. It says whether to go on.
func (f *Forward) answer(write func() error) bool {
	f.answering.Lock()
	defer f.answering.Unlock()
	f.mutex.Lock()
	over := f.over
	f.mutex.Unlock()
	if over {
		return false
	}
	if err := write(); err != nil {
		f.Cancel() // the reader of the link hears of it as well
		return false
	}
	return true
}

// end gives the operation's last answer, an error, if nobody has. It says whether it did.
func (f *Forward) end(reason error) bool {
	return f.answer(func() error {
		f.mutex.Lock()
		f.over = true
		f.changed.Broadcast()
		f.mutex.Unlock()
		f.cancel()
		return f.out.WriteMessage(failure.ToMessage(reason))
	})
}

// reset ends the connection of the guest's side so that it can tell it from an orderly end.
func (f *Forward) reset() {
	f.mutex.Lock()
	conn := f.conn
	f.mutex.Unlock()
	if conn != nil {
		resetConn(conn)
	}
}

func resetConn(conn *net.TCPConn) {
	_ = conn.SetLinger(0) // it fails where the connection is gone
	closeQuietly(conn)
}

// closeQuietly closes a connection that may be closed already.
func closeQuietly(conn *net.TCPConn) {
	if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		console.Printf("cannot close a forwarded connection: %v", err)
	}
}

func connectFailure(err error, address string) error {
	code := failure.ConnectionFailed
	if errors.Is(err, syscall.ECONNREFUSED) {
		code = failure.ConnectionRefused
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return &failure.Error{Code: code, Message: "cannot connect to " + address, Cause: errno}
	}
	if errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		return failure.New(code, "cannot connect to %s: no answer within %v", address, connectTimeout)
	}
	return &failure.Error{Code: code, Message: "cannot connect to " + address, Cause: err}
}

func isTimeout(err error) bool {
	var network net.Error
	return errors.As(err, &network) && network.Timeout()
}

func brokenFailure(err error, address string) error {
	return &failure.Error{Code: failure.ConnectionFailed, Message: "the connection to " + address + " broke", Cause: err}
}
