// Package record writes what happens to a VM, run.json, machine.json and exit.json, for whoever looks after the shim is gone.
package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"bandsox.dev/guest/internal/shim/procid"
)

// Names in the VM's directory.
const (
	RunFile  = "run.json"
	ExitFile = "exit.json"
)

// Run is run.json: which processes belong to the VM.
type Run struct {
	Shim  procid.ID  `json:"shim"`
	VMM   procid.ID  `json:"vmm"`
	Vsock *procid.ID `json:"vsock,omitempty"`
	// VsockShut says that the machine has no vsock device now.
	VsockShut bool   `json:"vsockShut,omitempty"`
	StartedAt string `json:"startedAt"`
	// A pid means something only in its boot and PID namespace, and this file may be read in others.
	BootID       string `json:"bootId"`
	PidNamespace uint64 `json:"pidNamespace"`
}

// Exit is exit.json: how the VMM ended; exactly one of Code, Signal and Unknown is set.
type Exit struct {
	Code    *int   `json:"code,omitempty"`
	Signal  string `json:"signal,omitempty"`
	Unknown bool   `json:"unknown,omitempty"`
	At      string `json:"at"`
	// Shutdown is why the machine was ended, in the VMM's words, where it said so before its end.
	Shutdown string `json:"shutdown,omitempty"`
	// ShimKilled says that no shim saw the end: At is when it was noticed.
	ShimKilled bool `json:"shimKilled,omitempty"`
}

// Now is the present in the form of all files.
func Now() string {
	return time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
}

// ReadRun reads run.json; nil when there is none. One that a power cut has left empty is none: it was not synced, and its processes
// ended with the power.
func ReadRun() (*Run, error) {
	text, err := os.ReadFile(RunFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	run := &Run{}
	if err := json.Unmarshal(text, run); err != nil {
		return nil, fmt.Errorf("%s: %w", RunFile, err)
	}
	return run, nil
}

// WriteRun replaces run.json.
func WriteRun(run Run) error { return replace(RunFile, run) }

// WriteExit replaces exit.json.
func WriteExit(exit Exit) error { return replace(ExitFile, exit) }

// replace writes to a temporary name and renames, so that a reader sees the old file or the new one, whole. It does not sync:
// the files speak of processes, and no process outlives a power cut.
func replace(name string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	temporary := name + ".tmp"
	if err := os.WriteFile(temporary, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, name)
}
