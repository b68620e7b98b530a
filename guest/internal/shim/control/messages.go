package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"

	"bandsox.dev/guest/internal/shim/procid"
	"bandsox.dev/guest/internal/shim/record"
)

// VsockState is what a client is told about the link.
type VsockState string

// The states of the link; only a running daemon can change, to dead.
const (
	VsockRunning VsockState = "running"
	VsockDead    VsockState = "dead"
	VsockNone    VsockState = "none"
	VsockKernel  VsockState = "kernel"
	VsockVMM     VsockState = "vmm"
)

// Codes of error events.
const (
	codeRequestInvalid = "request-invalid"
	codeTooManyClients = "too-many-clients"
	codeSignalFailed   = "signal-failed"
	codeVMMEnded       = "vmm-ended"
	codeConsoleFailed  = "console-failed"
	codeLookFailed     = "look-failed"
	codeVsockFailed    = "vsock-failed"
)

type statusEvent struct {
	Event string     `json:"event"`
	VMM   procid.ID  `json:"vmm"`
	Vsock VsockState `json:"vsock"`
	// State is missing while it is not known.
	State *record.Machine `json:"machine,omitempty"`
}

type machineEvent struct {
	Event string `json:"event"`
	record.Machine
}

type plainEvent struct {
	Event string `json:"event"`
}

// Links is what is known of the ways to the guest; nil is one that the VM does not have.
type Links struct {
	Vsock  *VsockLink  `json:"vsock"`
	Serial *SerialLink `json:"serial"`
}

// Traffic is of all connections since the shim's start.
type Traffic struct {
	Open           uint64 `json:"open"`
	Opened         uint64 `json:"opened"`
	ToGuestBytes   uint64 `json:"toGuestBytes"`
	FromGuestBytes uint64 `json:"fromGuestBytes"`
}

// VsockLink is vsock. State is that of the daemon; the others always run.
type VsockLink struct {
	Kind  string     `json:"kind"`
	State VsockState `json:"state"`
	Traffic
}

// SerialState says whether there is a session with the guest.
type SerialState string

// The states of the serial line.
const (
	SerialUp         SerialState = "up"
	SerialConnecting SerialState = "connecting"
)

// SerialLink is the serial line. RTTMs is nil while nothing is known.
type SerialLink struct {
	Kind  string      `json:"kind"`
	State SerialState `json:"state"`
	Traffic
	RTTMs         *float64 `json:"rttMs"`
	WindowBytes   int      `json:"windowBytes"`
	PayloadBytes  int      `json:"payloadBytes"`
	FramesSent    uint64   `json:"framesSent"`
	FramesResent  uint64   `json:"framesResent"`
	FramesDamaged uint64   `json:"framesDamaged"`
}

type linksEvent struct {
	Event string `json:"event"`
	Links
}

type exitedEvent struct {
	Event string `json:"event"`
	record.Exit
}

type errorEvent struct {
	Event   string `json:"event"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// request is one line of a client.
type request struct {
	Op     string `json:"op"`
	Signal string `json:"signal"`
	Tail   int64  `json:"tail"`
}

const (
	// maxLineBytes is the longest request, its newline included.
	maxLineBytes = 4096
	// maxTailBytes is the most of the log that a console client may have at first.
	maxTailBytes = 1 << 20
)

// signals are those a manager has a use for.
var signals = map[string]syscall.Signal{
	"SIGHUP": syscall.SIGHUP, "SIGINT": syscall.SIGINT, "SIGQUIT": syscall.SIGQUIT, "SIGKILL": syscall.SIGKILL,
	"SIGUSR1": syscall.SIGUSR1, "SIGUSR2": syscall.SIGUSR2, "SIGTERM": syscall.SIGTERM,
	"SIGCONT": syscall.SIGCONT, "SIGSTOP": syscall.SIGSTOP,
}

func parseRequest(line []byte) (request, error) {
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	var asked request
	if err := decoder.Decode(&asked); err != nil {
		return request{}, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return request{}, errors.New("something follows the request on its line")
	}
	switch asked.Op {
	case "signal":
		if _, known := signals[asked.Signal]; !known {
			return request{}, fmt.Errorf("signal %q is not one to send", asked.Signal)
		}
	case "console":
		if asked.Tail < 0 || asked.Tail > maxTailBytes {
			return request{}, fmt.Errorf("tail is %d, not 0 to %d", asked.Tail, maxTailBytes)
		}
	case "hold-link", "free-link", "shut-vsock", "open-vsock", "look", "links":
	default:
		return request{}, fmt.Errorf("op %q is none of signal, hold-link, free-link, shut-vsock, open-vsock, look, links and console", asked.Op)
	}
	return asked, nil
}

// encode makes one line of an event.
func encode(event any) []byte {
	text, err := json.Marshal(event)
	if err != nil {
		// Every event is one of the types above, which always encode.
		panic(err)
	}
	return append(text, '\n')
}
