package bridge

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is a connection to the guest. Its deadlines must also end a call that waits already.
type Conn interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

const (
	copyBufferBytes = 64 << 10
	// settleLimit is how long the other direction may take to deliver what it has read when one direction has ended.
	settleLimit = time.Second
	// finishLimit is how long a guest may take to close its end when it is told that there is no other.
	finishLimit = time.Second
)

// buffers are reused, since a connection needs two and many are short.
var buffers = sync.Pool{New: func() any { return new([copyBufferBytes]byte) }}

// join copies both ways, each at the pace of its receiver, until either side ends. There is no half-close over hybrid vsock: the end
// of one direction is the end of both, though what was read by then is still delivered. toGuest and fromGuest count the bytes.
func join(host *net.UnixConn, guest Conn, toGuest, fromGuest *atomic.Uint64) {
	ended := make(chan struct{}, 2)
	pass := func(to io.Writer, from io.Reader, count *atomic.Uint64) {
		copyStream(to, from, count)
		ended <- struct{}{}
	}
	go pass(host, guest, fromGuest)
	go pass(&untilRefused{Conn: guest}, host, toGuest)
	<-ended
	now := time.Now()
	for _, side := range []Conn{host, guest} {
		// An error means that the side is closed already, which is what this is after.
		_ = side.SetReadDeadline(now)
		_ = side.SetWriteDeadline(now.Add(settleLimit))
	}
	<-ended
}

// finish closes a connection for good: the guest is told of the end and answers with its own, so that neither the guest's system nor
// what is between has the connection any more when this returns. What the guest still sends is thrown away.
//
// Without a half-close there is nothing between that could be left.
func finish(guest Conn) {
	half, canSayEnd := guest.(interface{ CloseWrite() error })
	if !canSayEnd || half.CloseWrite() != nil {
		return
	}
	if guest.SetReadDeadline(time.Now().Add(finishLimit)) == nil {
		copyStream(io.Discard, guest, new(atomic.Uint64))
	}
}

// untilRefused throws away what is written to a guest that takes no more. A guest that wrote its answer and closed refuses input
// before the host has the whole answer: that is not yet the end of the connection, which comes when the answer has been read.
type untilRefused struct {
	Conn
	refused bool
}

func (u *untilRefused) Write(data []byte) (int, error) {
	if !u.refused {
		_, err := u.Conn.Write(data)
		u.refused = err != nil
	}
	return len(data), nil
}

// copyStream returns at the end of from, or when either side fails: for a connection these are the same, an end. (io.Copy would
// splice or allocate a buffer each time.)
func copyStream(to io.Writer, from io.Reader, count *atomic.Uint64) {
	buffer := buffers.Get().(*[copyBufferBytes]byte)
	defer buffers.Put(buffer)
	for {
		n, readErr := from.Read(buffer[:])
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
			count.Add(uint64(n))
		}
		if readErr != nil {
			return
		}
	}
}
