package serve

import (
	"errors"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/execute"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/agent/transfer"
	"bandsox.dev/guest/internal/wire"
)

const (
	// protocol is the version spoken here, the only one so far.
	protocol = 1
	// helloTimeout ends a connection that says nothing.
	helloTimeout = 10 * time.Second
)

// capabilities name what a host may ask for beyond version 1 of the protocol.
var capabilities = []string{"pty", "resume", "attach", "connect", "tools", "links", "snapshot"}

// operation is what a connection does for longer than one answer. Its methods are called from the connection's reader only.
type operation interface {
	// Data takes a data frame, or a part of one with rest bytes to come.
	Data(payload []byte, rest int) error
	// Message takes a message. An error is a *wire.Violation, or the connection's end.
	Message(message wire.Message) error
	// Ended says that the last answer is written, or about to be: what comes next from the host is about something else.
	Ended() bool
	// CrossedBy says that the host may have sent this frame before it saw the last answer.
	CrossedBy(frame wire.Frame) bool
	// Cancel is called when the connection ends in the operation.
	Cancel()
}

// enduring is an operation that may outlive its connection (PROTOCOL.md section 5).
type enduring interface {
	// Leave is called in place of Cancel when the connection is lost by nobody's fault. It may be called twice, and after the end.
	Leave()
	// Confirm is called when the host has read the last answer, which its next operation shows.
	Confirm()
}

// errEnd ends a connection without a word.
var errEnd = errors.New("the connection is over")

type connection struct {
	server  *Server
	stream  Stream
	decoder *wire.Decoder
	out     *wire.Writer
	pace    *transfer.Pace
	current operation // nil between operations
	last    operation // the one before, whose late frames may still come
	lost    bool      // the stream ended, and not by a violation
}

// newConnection makes one of a link, whose downloads keep the same pace.
func newConnection(server *Server, stream Stream, pace *transfer.Pace) *connection {
	return &connection{
		server: server, stream: stream, pace: pace,
		decoder: wire.NewDecoder(stream, wire.ToGuest),
		out:     wire.NewWriter(stream),
	}
}

// lastWordTimeout is how long a host may take to hear what it did wrong.
const lastWordTimeout = 2 * time.Second

// serve reads until the connection ends, by whomever.
func (c *connection) serve() {
	defer c.decoder.Release()
	defer c.cancel() // after a panic, too
	err := c.greet()
	for err == nil {
		var frame wire.Frame
		if frame, err = c.decoder.Next(); err == nil {
			err = c.take(frame)
			c.shrink() // not before: the frame's payload lies in the buffer
		}
	}
	var violation *wire.Violation
	// A stream that breaks does so in a frame as well as between two.
	c.lost = !errors.As(err, &violation) || violation.Name == wire.FrameTruncated
	if violation != nil {
		console.Printf("a host broke the protocol: %v", violation)
		// The stream may be gone already, and then there is nobody to tell.
		// A host that does not read must not keep the operation from its end.
		_ = c.stream.SetWriteDeadline(time.Now().Add(lastWordTimeout))
		_ = c.out.WriteLast(failure.ToMessage(failure.New(failure.BadRequest, "%v", violation)))
	}
	c.cancel() // behind the last word, which an `exit` of the killed command would else come before
}

// cancel ends the operation that the connection ended in, or leaves it to another connection. It may be called twice.
func (c *connection) cancel() {
	if last, isEnduring := c.last.(enduring); isEnduring {
		last.Leave() // the host may not have read its end
	}
	current, isEnduring := c.current.(enduring)
	switch {
	case isEnduring && c.lost:
		current.Leave()
	case c.current != nil:
		c.current.Cancel()
	}
}

// greet takes the host's hello and answers it.
func (c *connection) greet() error {
	if err := c.stream.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	frame, err := c.decoder.Next()
	if err != nil {
		return err
	}
	if frame.Message.Type != "hello" {
		return wire.Violatef(wire.MessageInvalid, "no hello")
	}
	if oldest := frame.Message.Integer("minProtocol", 0); oldest > protocol {
		err := failure.New(failure.ProtocolUnsupported, "the host wants protocol %d or later, the agent speaks %d", oldest, protocol)
		if writeErr := c.out.WriteMessage(failure.ToMessage(err)); writeErr != nil {
			return writeErr
		}
		return errEnd
	}
	if err := c.stream.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return c.out.WriteMessage(wire.Hello{
		Type: "hello", Protocol: protocol, Agent: c.server.Version, BootID: c.server.BootID,
		Capabilities: capabilities, Checksums: transfer.Checksums, Stages: c.server.Stages(),
	})
}

// take gives a frame to the operation it belongs to.
func (c *connection) take(frame wire.Frame) error {
	c.leaveEnded()
	switch {
	case c.current == nil && c.last != nil && c.last.CrossedBy(frame):
		return nil
	case c.current == nil && frame.Kind == wire.KindMessage:
		return c.start(frame.Message)
	case c.current == nil:
		return wire.Violatef(wire.MessageInvalid, "data outside an operation")
	case frame.Kind == wire.KindMessage && frame.Message.Type == "ping" && c.mayPing():
		return c.pong()
	case frame.Kind == wire.KindMessage:
		return c.current.Message(frame.Message)
	}
	return c.current.Data(frame.Payload, frame.Rest)
}

// mayPing says whether a host may ask for a word in the operation. It waits for one then, so it reads: the answer cannot be stuck
// behind output that nobody takes.
func (c *connection) mayPing() bool {
	_, isNamed := c.current.(*execute.Attachment)
	return isNamed
}

func (c *connection) pong() error {
	return c.out.WriteMessage(wire.Pong{Type: "pong", UptimeMs: c.server.UptimeMs()})
}

// leaveEnded forgets an operation that has ended.
func (c *connection) leaveEnded() {
	if c.current != nil && c.current.Ended() {
		c.last, c.current = c.current, nil
	}
}

// shrink keeps a large buffer for an upload only: hundreds of idle connections must not hold a quarter of a megabyte each.
func (c *connection) shrink() {
	c.leaveEnded()
	if _, uploading := c.current.(*transfer.Upload); !uploading {
		c.decoder.Release()
	}
}
