package monitor

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"bandsox.dev/guest/internal/shim/record"
)

const (
	// maxLineBytes is far above the events and answers that matter, which stay below 500.
	maxLineBytes = 8 << 10
	// writeLimit is for a VMM that does not read.
	writeLimit = 10 * time.Second
	// answerLimit is how long an answer is waited for until the next event makes us ask again.
	answerLimit = 10 * time.Second
	// loadingPoll is how often a VMM is asked that loads a state, which takes some 50 ms.
	loadingPoll = 20 * time.Millisecond
)

// message is any line of the VMM; QEMU's docs/interop/qmp-spec.
type message struct {
	Greeting *struct{} `json:"QMP"`
	Event    string    `json:"event"`
	// Data has another shape for each event.
	Data   json.RawMessage `json:"data"`
	ID     uint64          `json:"id"`
	Return *struct {
		Status string `json:"status"`
	} `json:"return"`
	Error *struct {
		Description string `json:"desc"`
	} `json:"error"`
}

// diskFailure is the data of BLOCK_IO_ERROR.
type diskFailure struct {
	Device    string `json:"device"`
	Operation string `json:"operation"`
	Action    string `json:"action"`
	NoSpace   bool   `json:"nospace"`
	Reason    string `json:"reason"`
}

// session is what is true of one connection.
type session struct {
	*Watch
	conn *net.UnixConn
	// asked is the number of the last question, answered that of the last answer.
	asked, answered uint64
	askedAt         time.Time
	// again says that something changed since the last question.
	again bool
	// failure is what was said of the disk since the machine ran.
	failure string
	// isLoading says that the VMM loads a state. That it has, no event tells of where the machine stands still.
	isLoading bool
}

// impatient reads from the VMM, and asks it from time to time while it loads a state.
type impatient struct{ *session }

func (i impatient) Read(bytes []byte) (int, error) {
	for {
		if i.isLoading && !i.isStopping() {
			// What fails here fails again in the read.
			_ = i.conn.SetReadDeadline(time.Now().Add(loadingPoll))
		}
		n, err := i.conn.Read(bytes)
		if n > 0 || !i.isLoading || i.isStopping() || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if i.isAsking() {
			continue // it answers when it has loaded
		}
		if err := i.ask(); err != nil {
			return 0, err
		}
	}
}

// listen returns when the connection has ended.
func (w *Watch) listen(conn *net.UnixConn) error {
	talk := &session{Watch: w, conn: conn}
	reader := bufio.NewReaderSize(impatient{talk}, maxLineBytes)
	for {
		w.pace.wait(w.stopping)
		line, err := reader.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			w.trouble(fmt.Errorf("the VMM sent a line of more than %d bytes", maxLineBytes))
			err = skipLine(reader)
			line = nil
		}
		if err != nil {
			return err
		}
		if line == nil {
			continue
		}
		var said message
		if err := json.Unmarshal(line, &said); err != nil {
			w.trouble(fmt.Errorf("%w in %.80q", err, line))
			continue
		}
		if err := talk.hear(said); err != nil {
			return err
		}
	}
}

// skipLine reads to the end of a line whose beginning is read.
func skipLine(reader *bufio.Reader) error {
	for {
		_, err := reader.ReadSlice('\n')
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

func (s *session) hear(said message) error {
	switch {
	case said.Greeting != nil:
		if err := s.send("qmp_capabilities", 0); err != nil {
			return err
		}
		return s.ask()
	case said.Event != "":
		return s.hearEvent(said)
	case said.Error != nil:
		s.trouble(fmt.Errorf("the VMM refused: %.200q", said.Error.Description))
	case said.Return != nil && said.ID == s.asked && s.asked > s.answered:
		s.answered = s.asked
		s.hearStatus(said.Return.Status)
		if s.again {
			return s.ask()
		}
	}
	return nil
}

func (s *session) hearEvent(said message) error {
	switch said.Event {
	case "BLOCK_IO_ERROR":
		s.hearFailure(said.Data)
	case "SHUTDOWN":
		s.hearShutdown(said.Data)
	case "STOP":
		s.ears.Stops()
		return s.ask()
	case "RESUME", "RESET", "GUEST_PANICKED", "SUSPEND", "WAKEUP":
		return s.ask()
	}
	return nil
}

// hearFailure keeps why the machine stops: this comes before the STOP that follows from it.
func (s *session) hearFailure(data json.RawMessage) {
	var failure diskFailure
	if err := json.Unmarshal(data, &failure); err != nil {
		s.trouble(fmt.Errorf("BLOCK_IO_ERROR: %w", err))
		return
	}
	if failure.Action == "stop" {
		s.ears.Stops()
		s.failure = failure.text()
	}
}

func (s *session) hearShutdown(data json.RawMessage) {
	var why struct {
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(data, &why); err != nil {
		s.trouble(fmt.Errorf("SHUTDOWN: %w", err))
		return
	}
	if !shutdownCauses[why.Reason] {
		s.trouble(fmt.Errorf("the machine was ended for an unknown reason, %.80q", why.Reason))
		return
	}
	s.shutdown = why.Reason
}

// ask asks what the machine does, unless a question is under way: then it asks once more after the answer.
func (s *session) ask() error {
	if s.isAsking() {
		s.again = true
		return nil
	}
	s.asked++
	s.askedAt, s.again = time.Now(), false
	return s.send("query-status", s.asked)
}

// isAsking says that a question is under way.
func (s *session) isAsking() bool {
	return s.asked > s.answered && time.Since(s.askedAt) < answerLimit
}

func (s *session) send(command string, id uint64) error {
	text, err := json.Marshal(struct {
		Execute string `json:"execute"`
		ID      uint64 `json:"id"`
	}{command, id})
	if err != nil {
		return err
	}
	if !s.isStopping() {
		// What fails here fails again in the write.
		_ = s.conn.SetWriteDeadline(time.Now().Add(writeLimit))
	}
	_, err = s.conn.Write(append(text, '\n'))
	return err
}

func (s *session) hearStatus(runState string) {
	status, known := statuses[runState]
	if !known {
		s.trouble(fmt.Errorf("the machine is in an unknown state, %.80q", runState))
		return
	}
	if s.isLoading && runState != runStateLoading && !s.isStopping() {
		_ = s.conn.SetReadDeadline(time.Time{}) // what fails here fails again in the next read
	}
	s.isLoading = runState == runStateLoading
	reason := ""
	switch status {
	case record.MachineRunning:
		s.failure = ""
		s.ears.Runs()
	case record.MachineIOError:
		reason = s.failure
		if reason == "" && s.now.Status == record.MachineIOError {
			reason = s.now.Reason // heard by the shim before this one
		}
	}
	s.set(status, reason)
}

// runStateLoading is that of a QEMU that has yet to load a state, or is about to.
const runStateLoading = "inmigrate"

// statuses are QEMU's RunState (qapi/run-state.json) in our words.
var statuses = map[string]string{
	"prelaunch": record.MachineStarting, runStateLoading: record.MachineStarting, "running": record.MachineRunning,
	"paused": record.MachinePaused, "debug": record.MachinePaused, "save-vm": record.MachinePaused, "restore-vm": record.MachinePaused,
	"finish-migrate": record.MachinePaused, "postmigrate": record.MachinePaused, "suspended": record.MachineSuspended,
	"io-error": record.MachineIOError, "guest-panicked": record.MachineGuestPanicked,
	"internal-error": record.MachineInternalError, "shutdown": record.MachineShutdown,
}

// shutdownCauses are QEMU's ShutdownCause (qapi/run-state.json).
var shutdownCauses = map[string]bool{
	"none": true, "host-error": true, "host-qmp-quit": true, "host-qmp-system-reset": true, "host-signal": true, "host-ui": true,
	"guest-shutdown": true, "guest-reset": true, "guest-panic": true, "subsystem-reset": true, "snapshot-load": true,
}

// text is for people, and harmless whatever the VMM has said.
func (f diskFailure) text() string {
	why := f.Reason
	if f.NoSpace {
		why = "no space left on the host"
	}
	return fmt.Sprintf("%s on disk %s failed: %s", plain(f.Operation, 16), plain(f.Device, 40), plain(why, 100))
}

// plain cuts a text, and leaves nothing in it that a terminal, or JSON, would take for more than itself.
func plain(text string, maxBytes int) string {
	if len(text) > maxBytes {
		text = text[:maxBytes]
	}
	bytes := []byte(text)
	for i, b := range bytes {
		isHarmless := b >= ' ' && b <= '~' && b != '"' && b != '\\' && b != '<' && b != '>' && b != '&'
		if !isHarmless {
			bytes[i] = '?'
		}
	}
	return string(bytes)
}
