package monitor

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/shim/ownsocket"
	"bandsox.dev/guest/internal/shim/record"
)

const (
	// A VMM that has just been started is asked often: whoever pauses it first goes by what is on record.
	firstLook = 5 * time.Millisecond
	// Later only who changes the state asks at once; this is for changes of others, past BandSox.
	lastLook = 10 * time.Second
	// lookLimit is for a VMM that is busy with another request, such as a snapshot, and answers in turn.
	lookLimit = 5 * time.Second
	// maxAnswerBytes is far above any answer to GET /, which has some 250 with its headers.
	maxAnswerBytes = 8 << 10
)

// Poll asks a Firecracker what its machine does, as it tells nothing by itself.
type Poll struct {
	socket string
	ears   Ears

	// asks holds where the answer to Look goes.
	asks     chan chan error
	stopping chan struct{}
	stopOnce sync.Once
	done     chan struct{}

	// What follows belongs to the goroutine.
	now record.Machine
	// known says that the VMM has answered: what was on record before may be of another time.
	known   bool
	reports int
}

// StartPoll begins to ask at the socket of Firecracker's API. now is what is known so far.
func StartPoll(socket string, now record.Machine, ears Ears) *Poll {
	poll := &Poll{
		socket: socket, now: now, ears: ears,
		asks: make(chan chan error), stopping: make(chan struct{}), done: make(chan struct{}),
	}
	go poll.run()
	return poll
}

var errEnded = errors.New("the VMM has ended")

// Look asks at once, and returns when what the answer says is told. The error is why there was none.
func (p *Poll) Look() error {
	answer := make(chan error, 1)
	select {
	case p.asks <- answer:
		return <-answer
	case <-p.done:
		return errEnded
	}
}

// Finish ends the asking. A VMM's last words are its log's affair: it says nothing here.
func (p *Poll) Finish() (shutdown string) {
	p.stopOnce.Do(func() { close(p.stopping) })
	<-p.done
	return ""
}

func (p *Poll) run() {
	defer close(p.done)
	for wait := firstLook; ; {
		next := time.NewTimer(wait)
		select {
		case <-p.stopping:
			next.Stop()
			return
		case answer := <-p.asks:
			next.Stop()
			answer <- p.look()
		case <-next.C:
			p.trouble(p.look())
		}
		if !p.known || p.now.Status == record.MachineStarting {
			wait = longer(wait)
		} else {
			wait = lastLook
		}
	}
}

func (p *Poll) look() error {
	state, err := p.ask()
	if err != nil {
		return err
	}
	status, known := firecrackerStates[state]
	if !known {
		return fmt.Errorf("the machine is in an unknown state, %.80q", state)
	}
	p.known = true
	switch status {
	case record.MachineRunning:
		p.ears.Runs()
	case record.MachinePaused:
		p.ears.Stops()
	}
	if status != p.now.Status {
		p.now = record.Machine{Status: status, Since: record.Now()}
		p.ears.Changed(p.now)
	}
	return nil
}

// firecrackerStates are the words of its instance information in ours.
var firecrackerStates = map[string]string{
	"Not started": record.MachineStarting, "Running": record.MachineRunning, "Paused": record.MachinePaused,
}

// ask is one GET of the instance's information. (The standard library's client would double the shim.)
func (p *Poll) ask() (state string, err error) {
	conn, err := ownsocket.Dial(p.socket)
	if err != nil {
		return "", err
	}
	defer conn.Close() // nothing that was written to it matters any more
	if err := conn.SetDeadline(time.Now().Add(lookLimit)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"); err != nil {
		return "", err
	}
	return readState(conn)
}

// readState takes an answer apart. The VMM may have been taken over: nothing in it is believed beyond its bounds.
func readState(from io.Reader) (state string, err error) {
	reader := bufio.NewReader(io.LimitReader(from, maxAnswerBytes))
	status, err := reader.ReadString('\n')
	if err != nil {
		return "", err
	}
	if words := strings.Fields(status); len(words) < 2 || words[1] != "200" {
		return "", fmt.Errorf("the VMM answers %.80q", status)
	}
	length := -1
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return "", err
		}
		line = strings.TrimSpace(line)
		if line == "" {
			break
		}
		name, value, _ := strings.Cut(line, ":")
		if strings.EqualFold(name, "Content-Length") {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil || length < 0 || length > maxAnswerBytes {
				return "", fmt.Errorf("the VMM announces %.40q bytes", value)
			}
		}
	}
	if length < 0 {
		return "", errors.New("the VMM does not say how long its answer is")
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(reader, body); err != nil {
		return "", err
	}
	var information struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal(body, &information); err != nil {
		return "", fmt.Errorf("%w in %.80q", err, body)
	}
	return information.State, nil
}

// trouble reports what is news: a VMM that is yet to make its socket, or has just ended, is none.
func (p *Poll) trouble(err error) {
	isComingOrGoing := errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrDeadlineExceeded)
	if err == nil || isComingOrGoing || p.reports == maxReports {
		return
	}
	p.reports++
	p.ears.Report(fmt.Errorf("monitor: %w", err))
}
