package control

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/shim/procid"
)

// client is one connection: lines of JSON at first, a raw console once it asks for that.
type client struct {
	conn    *net.UnixConn
	machine Machine
	links   func() Links
	out     *outbox

	mu sync.Mutex
	// raw says that events are no longer for this client: a line among raw bytes could not be told from output.
	raw bool
}

func newClient(conn *net.UnixConn, machine Machine, links func() Links) *client {
	client := &client{conn: conn, machine: machine, links: links}
	// Closing wakes both of the client's goroutines, and a client too slow gets nothing more.
	client.out = newOutbox(func() { client.report(conn.Close()) })
	return client
}

// serve returns when the connection has ended and nothing of it is left.
func (c *client) serve() {
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.writeOut()
	}()
	c.readRequests()
	c.awaitEnd(written)
	c.machine.Console.Unwatch(c.out)
}

// awaitEnd returns when everything is written or the client is gone. A client that closed only its writing half may read on, but
// its going altogether is then shown by nothing except a look.
func (c *client) awaitEnd(written <-chan struct{}) {
	look := time.NewTicker(hangUpCheckInterval)
	defer look.Stop()
	for {
		select {
		case <-written:
			return
		case <-look.C:
			if c.hasHungUp() {
				c.out.close()
			}
		}
	}
}

// say queues an event, unless the client has gone over to raw bytes.
func (c *client) say(event any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sayLocked(event)
}

func (c *client) sayLocked(event any) {
	if !c.raw {
		c.out.Offer(encode(event))
	}
}

// part lets the client read what is queued, within the limit, and then ends the connection.
func (c *client) part(limit time.Duration) {
	c.report(c.conn.SetWriteDeadline(time.Now().Add(limit)))
	c.out.close()
}

// refuse ends a connection that was never served.
func (c *client) refuse(why string) {
	c.report(c.conn.SetWriteDeadline(time.Now().Add(farewellLimit)))
	_, err := c.conn.Write(encode(errorEvent{Event: "error", Code: codeTooManyClients, Message: why}))
	c.report(err)
	c.report(c.conn.Close())
}

// writeOut sends what is queued until there is nothing more to come or nobody to send to, and closes the connection.
func (c *client) writeOut() {
	for {
		data, more := c.out.take()
		if !more {
			break
		}
		if _, err := c.conn.Write(data); err != nil {
			c.report(err)
			break
		}
	}
	c.out.close()
	c.report(c.conn.Close())
}

// readRequests carries out the client's lines until it closes its end or turns to the console.
func (c *client) readRequests() {
	reader := bufio.NewReaderSize(c.conn, maxLineBytes)
	for {
		line, err := reader.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			c.say(errorEvent{Event: "error", Code: codeRequestInvalid, Message: fmt.Sprintf("the line is longer than %d bytes", maxLineBytes)})
			c.out.close()
			return
		}
		if err != nil {
			c.readingEnded(err)
			return
		}
		asked, err := parseRequest(line)
		switch {
		case err != nil:
			c.say(errorEvent{Event: "error", Code: codeRequestInvalid, Message: err.Error()})
		case asked.Op == "signal":
			c.signal(asked.Signal)
		case asked.Op == "hold-link":
			c.machine.HoldLink()
			c.say(plainEvent{Event: "link-held"})
		case asked.Op == "free-link":
			c.machine.FreeLink()
			c.say(plainEvent{Event: "link-freed"})
		case asked.Op == "shut-vsock":
			c.shutVsock(true, "vsock-shut")
		case asked.Op == "open-vsock":
			c.shutVsock(false, "vsock-opened")
		case asked.Op == "look":
			c.look()
		case asked.Op == "links":
			c.say(linksEvent{Event: "links", Links: c.links()})
		case asked.Op == "console":
			c.attachConsole(reader, asked.Tail)
			return
		}
	}
}

// look answers when the news of what the machine does, if there is any, is with the client already.
func (c *client) look() {
	if err := c.machine.Look(); err != nil {
		c.say(errorEvent{Event: "error", Code: codeLookFailed, Message: err.Error()})
		return
	}
	c.say(plainEvent{Event: "looked"})
}

func (c *client) shutVsock(shut bool, done string) {
	if err := c.machine.ShutVsock(shut); err != nil {
		c.say(errorEvent{Event: "error", Code: codeVsockFailed, Message: err.Error()})
		return
	}
	c.say(plainEvent{Event: done})
}

// signal sends and answers in one step, so that the news of the VMM's end cannot come before the answer that explains it.
func (c *client) signal(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.machine.Signal(signals[name])
	switch {
	case errors.Is(err, procid.ErrGone):
		c.sayLocked(errorEvent{Event: "error", Code: codeVMMEnded, Message: "the VMM has ended"})
	case err != nil:
		c.sayLocked(errorEvent{Event: "error", Code: codeSignalFailed, Message: err.Error()})
	default:
		c.sayLocked(plainEvent{Event: "signalled"})
	}
}

// attachConsole answers, and from then on passes raw bytes both ways until the client closes its end.
func (c *client) attachConsole(reader io.Reader, tail int64) {
	input, err := c.machine.OpenInput()
	if err != nil {
		c.say(errorEvent{Event: "error", Code: codeConsoleFailed, Message: err.Error()})
		c.out.close()
		return
	}
	c.goRaw()
	err = c.machine.Console.Watch(c.out, tail)
	if err == nil {
		err = copyToConsole(input, reader, c.hasHungUp)
	}
	c.report(input.Close())
	c.readingEnded(err)
}

// goRaw says the last line of JSON.
func (c *client) goRaw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.Offer(encode(plainEvent{Event: "console"}))
	c.raw = true
}

// readingEnded looks at why nothing more comes from the client. After a mere end of file it may still be reading.
func (c *client) readingEnded(err error) {
	if !errors.Is(err, io.EOF) || c.hasHungUp() {
		c.report(err)
		c.out.close()
	}
}

// report passes on what is news; that a client went away, or was too slow to be parted from nicely, is not.
func (c *client) report(err error) {
	expected := []error{nil, io.EOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET, errHungUp, os.ErrDeadlineExceeded}
	for _, known := range expected {
		if errors.Is(err, known) {
			return
		}
	}
	c.machine.Report(fmt.Errorf("%s: %w", SocketName, err))
}
