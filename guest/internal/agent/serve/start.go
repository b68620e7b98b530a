package serve

import (
	"errors"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/execute"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/agent/forward"
	"bandsox.dev/guest/internal/agent/inspect"
	"bandsox.dev/guest/internal/wire"
)

// defaultGraceMs is what a `shutdown` leaves to processes when it does not say.
const defaultGraceMs = 2000

// start begins an operation. An operation's own error is answered and leaves the connection usable.
func (c *connection) start(message wire.Message) error {
	if last, isEnduring := c.last.(enduring); isEnduring {
		last.Confirm()
	}
	c.last = nil // what crossed its end has come before this
	var err error
	switch {
	case message.Type == "ping":
		return c.pong()
	case c.server.isStopping():
		err = failure.New(failure.Stopping, "cannot start anything: the machine is stopping")
	default:
		err = c.startNamed(message)
	}
	var violation *wire.Violation
	if err == nil || errors.Is(err, errEnd) || errors.As(err, &violation) {
		return err
	}
	return c.out.WriteMessage(failure.ToMessage(err))
}

// startNamed sets c.current only when there is an operation: a nil pointer in an interface is not nil.
func (c *connection) startNamed(message wire.Message) error {
	switch message.Type {
	case "exec":
		if message.Has("job") {
			attachment, err := c.server.jobs.Exec(message, c.server.Reaper, c.out, c.hangUp)
			if err == nil {
				c.current = attachment
			}
			return err
		}
		command, err := execute.Start(message, c.server.Reaper, c.out, c.hangUp)
		if err == nil {
			c.current = command
		}
		return err
	case "attach":
		attachment, err := c.server.jobs.Attach(message, c.out, c.hangUp)
		if err == nil {
			c.current = attachment
		}
		return err
	case "upload":
		upload, err := c.server.transfers.StartUpload(message, c.out, c.hangUp)
		if err == nil {
			c.current = upload
		}
		return err
	case "download":
		download, err := c.server.transfers.StartDownload(message, c.out, c.pace, c.hangUp)
		if err == nil {
			c.current = download
		}
		return err
	case "connect":
		forwarded, err := forward.Start(message, c.out, c.hangUp)
		if err == nil {
			c.current = forwarded
		}
		return err
	case "links":
		return c.out.WriteMessage(c.server.links())
	case "stat":
		info, err := inspect.Stat(message)
		if err != nil {
			return err
		}
		return c.out.WriteMessage(info)
	case "list":
		return inspect.List(message, c.out)
	case "freeze":
		frozen, err := c.server.Snapshot.Freeze(message)
		if err != nil {
			return err
		}
		return c.out.WriteMessage(frozen)
	case "thaw":
		c.server.Snapshot.Thaw()
		return c.out.WriteMessage(wire.Typed{Type: "thawed"})
	case "identify":
		identified, leave := c.server.Snapshot.Identify(message)
		if err := c.out.WriteMessage(identified); err != nil {
			return err // the host will ask again where it asked now
		}
		leave()
		return nil
	case "jobs":
		list, err := c.server.jobs.List(c.server.UptimeMs())
		if err != nil {
			return err
		}
		return c.out.WriteMessage(list)
	case "shutdown":
		if err := c.out.WriteMessage(wire.Typed{Type: "stopping"}); err != nil {
			console.Printf("cannot confirm a shutdown: %v", err) // it was asked for all the same
		}
		grace := time.Duration(message.Integer("graceMs", defaultGraceMs)) * time.Millisecond
		c.server.Shutdown(message.Text("mode"), grace)
		return errEnd
	}
	return wire.Violatef(wire.MessageInvalid, "%s outside an operation", message.Type)
}

// hangUp ends the connection from another goroutine than its reader's: the reader notices and leaves the operation. A write
// that waits for the host ends as well.
func (c *connection) hangUp() { closeStream(c.stream) }
