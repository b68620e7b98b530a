// Package execute runs a command for the host: PROTOCOL.md section 3.
//
// Two goroutines share a command. The connection's reader brings signals and input; the runner (output.go) does everything
// else, in one loop around poll(2), so that nothing but the kernel lies between a command's end and the host's knowledge of
// it. A third pumps input, only for commands that want some.
//
// A command that has a name (PROTOCOL.md section 5) outlives its connection. Between it and its connections stands a job (job.go),
// which keeps output that the host has not acknowledged; each connection's part in it is an Attachment.
package execute

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/machinetime"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/wire"
)

// Command is one `exec` operation.
type Command struct {
	child    *reaper.Child
	reaper   *reaper.Reaper
	out      *wire.Writer
	job      *job      // nil: the command ends with its connection, which is out's
	input    *input    // nil: /dev/null, or a terminal at which nobody types
	terminal *terminal // nil: pipes
	streams  []stream
	watch    *watch
	timer    *machinetime.Timer
	timedOut int32 // atomic
	ended    int32 // atomic: `exit` is written, or about to be
	hangUp   func()
	// held are the command's ends of its output pipes. Were they the command's alone, it would wake the runner by closing each
	// when it exits, before its end does: two more switches to and fro, on what may be the only CPU. Of a terminal it is the
	// slave: a command may close all its descriptors of it and open it again, which would look like its end.
	held []int
	// preview shows a person which command it is.
	preview   string
	startedAt time.Time
}

var nullDevice struct {
	sync.Once
	fd  int
	err error
}

// Start begins the command of an `exec` message. hangUp ends the connection: it is called when nothing sensible can be sent.
func Start(message wire.Message, r *reaper.Reaper, out *wire.Writer, hangUp func()) (*Command, error) {
	return (&Command{reaper: r, out: out, hangUp: hangUp}).start(message)
}

// start runs the command, whose fields say where its output goes.
func (c *Command) start(message wire.Message) (*Command, error) {
	request, err := newRequest(message)
	if err != nil {
		return nil, err
	}
	var given descriptors
	defer given.close()
	files, err := c.openStreams(request, &given)
	if err != nil {
		c.closeOwn()
		return nil, err
	}
	c.child, err = c.reaper.Start(reaper.Program{Path: request.program, Argv: request.argv, StopSignal: request.stopSignal}, &syscall.ProcAttr{
		Dir:   request.folder,
		Env:   request.env,
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: c.terminal != nil, Credential: credential(request)},
	})
	if err != nil {
		c.closeOwn()
		return nil, startFailure(err, request)
	}
	c.preview, c.startedAt = wire.Cut(request.shown, wire.MaxPreviewBytes), time.Now()
	if c.watch, err = newWatch(c.child.PidFD, c.streams); err != nil {
		c.kill() // nobody could tell when it ends
		closeFD(c.child.PidFD)
		c.closeOwn()
		return nil, err
	}
	c.held = given.keep(len(c.streams)) // each stream's other end was the last to be opened
	if request.timeoutMs > 0 {
		c.timer = machinetime.AfterFunc(time.Duration(request.timeoutMs)*time.Millisecond, c.timeOut)
	}
	if c.input != nil {
		go func() {
			defer console.Contain("writing a command's input", c.abandon)
			c.input.pump()
		}()
	}
	go func() {
		defer console.Contain("running a command", c.abandon)
		c.run()
	}()
	return c, nil
}

// Data takes a piece of standard input.
func (c *Command) Data(payload []byte, rest int) error {
	if c.input == nil {
		return wire.Violatef(wire.MessageInvalid, "input for a command without stdin")
	}
	return c.input.take(payload)
}

// Message takes a message that arrives while the command runs.
func (c *Command) Message(message wire.Message) error {
	switch message.Type {
	case "signal":
		name := message.Text("signal")
		number, known := signalNumbers[name]
		if !known {
			return wire.Violatef(wire.MessageInvalid, "signal %.40q is not known", name)
		}
		if _, err := c.child.SignalGroup(number); err != nil {
			console.Printf("cannot send %s to the group of process %d: %v", name, c.child.Pid, err)
		}
		return nil
	case "eof":
		if c.input == nil {
			return wire.Violatef(wire.MessageInvalid, "eof for a command without stdin")
		}
		return c.input.end()
	case "resize":
		if c.terminal == nil {
			return wire.Violatef(wire.MessageInvalid, "resize of a command without a terminal")
		}
		c.terminal.resize(sizeOf(message))
		return nil
	}
	return wire.Violatef(wire.MessageInvalid, "%s while a command runs", message.Type)
}

// Ended says whether the operation is over, as far as the host can know.
func (c *Command) Ended() bool { return atomic.LoadInt32(&c.ended) != 0 }

// Cancel is called when the connection has ended: nobody will read the output.
func (c *Command) Cancel() { c.kill() }

// CrossedBy says whether the host may have sent this before it saw `exit`.
func (c *Command) CrossedBy(frame wire.Frame) bool {
	if frame.Kind == wire.KindData {
		return true
	}
	switch frame.Message.Type {
	case "eof", "signal", "resize":
		return true
	}
	return false
}

func (c *Command) timeOut() {
	atomic.StoreInt32(&c.timedOut, 1) // first: the end may be told before this goroutine runs again
	c.kill()
}

// kill ends the command with all of its group; at a terminal, with all of its session.
func (c *Command) kill() {
	if c.terminal != nil {
		if err := c.child.KillSession(); err != nil {
			console.Printf("cannot kill the session of process %d: %v", c.child.Pid, err)
		}
		return
	}
	if _, err := c.child.SignalGroup(syscall.SIGKILL); err != nil {
		console.Printf("cannot kill the group of process %d: %v", c.child.Pid, err)
	}
}

func (c *Command) abandon() {
	c.kill()
	c.hangUp()
}

// openStreams makes what the command reads from and writes to, and gives its descriptors 0 to 2.
func (c *Command) openStreams(request request, given *descriptors) ([]uintptr, error) {
	if request.terminal != nil {
		return c.openTerminal(request, given)
	}
	stdin, err := c.openInput(request.wantStdin, given)
	if err != nil {
		return nil, err
	}
	files := []uintptr{uintptr(stdin)}
	for _, kind := range []wire.Kind{wire.KindStdout, wire.KindStderr} {
		readEnd, writeEnd, err := given.pipe()
		if err != nil {
			return nil, err
		}
		c.streams = append(c.streams, stream{kind: kind, fd: readEnd, open: true})
		if err := syscall.SetNonblock(readEnd, true); err != nil {
			return nil, fmt.Errorf("cannot make a pipe non-blocking: %w", err)
		}
		files = append(files, uintptr(writeEnd))
	}
	return files, nil
}

// openTerminal gives the command a terminal in place of pipes: what it shows is one stream.
func (c *Command) openTerminal(request request, given *descriptors) ([]uintptr, error) {
	opened, output, slave, err := openTerminal(*request.terminal, request.user.UID)
	if err != nil {
		return nil, err
	}
	given.fds = append(given.fds, slave)
	c.terminal = opened
	c.streams = []stream{{kind: wire.KindStdout, fd: output, open: true, isTerminal: true}}
	if request.wantStdin {
		c.input = newInput(opened, c.acknowledger())
	}
	return []uintptr{uintptr(slave), uintptr(slave), uintptr(slave)}, nil
}

// openInput gives the descriptor for the command's standard input.
func (c *Command) openInput(wanted bool, given *descriptors) (int, error) {
	if !wanted {
		// Opened once: a command may remove /dev/null, and the next one must run all the same.
		nullDevice.Do(func() {
			nullDevice.fd, nullDevice.err = syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		})
		if nullDevice.err != nil {
			return 0, fmt.Errorf("cannot open %s: %w", os.DevNull, nullDevice.err)
		}
		return nullDevice.fd, nil
	}
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return 0, fmt.Errorf("cannot make a pipe: %w", err)
	}
	given.fds = append(given.fds, ends[0])
	if err := syscall.SetNonblock(ends[1], true); err != nil {
		given.fds = append(given.fds, ends[1])
		return 0, fmt.Errorf("cannot make a pipe non-blocking: %w", err)
	}
	c.input = newInput(pipe{os.NewFile(uintptr(ends[1]), "stdin")}, c.acknowledger())
	return ends[0], nil
}

// acknowledger is who hears how much input is taken.
func (c *Command) acknowledger() acknowledger {
	if c.job != nil {
		return c.job
	}
	return c.out
}

// closeOwn closes the agent's ends of the pipes, or of the terminal, which hangs it up. Harmless when repeated.
func (c *Command) closeOwn() {
	if c.input != nil {
		c.input.close()
	}
	if c.terminal != nil {
		if err := c.terminal.Close(); err != nil && !isClosed(err) {
			console.Printf("cannot close a terminal: %v", err)
		}
	}
	for i := range c.streams {
		c.streams[i].close()
	}
}

// letGo closes held; harmless when repeated.
func (c *Command) letGo() {
	for _, fd := range c.held {
		closeFD(fd)
	}
	c.held = nil
}

// credential is nil where nothing would change, since new credentials are the dearest part of a fork; and where it could not:
// only root may ask for groups, and tests run as anybody.
func credential(r request) *syscall.Credential {
	if int(r.user.UID) == os.Geteuid() && (r.user.UID != 0 || int(r.user.GID) == os.Getegid() && haveGroups(r.user.Groups)) {
		return nil
	}
	return &syscall.Credential{Uid: r.user.UID, Gid: r.user.GID, Groups: r.user.Groups}
}

// haveGroups says whether these are the agent's own supplementary groups, in any order.
func haveGroups(wanted []uint32) bool {
	own, err := syscall.Getgroups()
	if err != nil || len(own) != len(wanted) {
		return false
	}
	for _, group := range wanted {
		found := false
		for _, each := range own {
			found = found || uint32(each) == group
		}
		if !found {
			return false
		}
	}
	return true
}

// descriptors are the ends that the command gets; the agent closes its copies once the command has them.
type descriptors struct{ fds []int }

// pipe makes a pipe for output, of which the command gets the end for writing.
func (d *descriptors) pipe() (readEnd, writeEnd int, err error) {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return 0, 0, fmt.Errorf("cannot make a pipe: %w", err)
	}
	d.fds = append(d.fds, ends[1])
	return ends[0], ends[1], nil
}

// keep hands the last ones over to another owner.
func (d *descriptors) keep(count int) []int {
	at := len(d.fds) - count
	kept := d.fds[at:]
	d.fds = d.fds[:at]
	return kept
}

func (d *descriptors) close() {
	for _, fd := range d.fds {
		closeFD(fd)
	}
}

// closeFD closes a descriptor of a pipe or pidfd, for which close(2) has nothing to report but a bug.
func closeFD(fd int) {
	if err := syscall.Close(fd); err != nil {
		console.Printf("cannot close descriptor %d: %v", fd, err)
	}
}

func isClosed(err error) bool { return errors.Is(err, os.ErrClosed) }

// isHungUp is what a terminal says when nobody has its other side open.
func isHungUp(err error) bool { return errors.Is(err, syscall.EIO) }
