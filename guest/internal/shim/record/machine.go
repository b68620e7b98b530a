package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Names in the VM's directory.
const (
	MachineFile = "machine.json"
	// MachineSpare is what machine.json was before, and will be again.
	MachineSpare = MachineFile + ".spare"
)

// machineBytes is the size of both files. A Reason has at most MaxReasonBytes, and the rest never more than 150.
const (
	machineBytes   = 512
	MaxReasonBytes = 240
)

// The states of a machine.
const (
	MachineStarting      = "starting"
	MachineRunning       = "running"
	MachinePaused        = "paused"
	MachineSuspended     = "suspended"
	MachineIOError       = "io-error"
	MachineGuestPanicked = "guest-panicked"
	MachineInternalError = "internal-error"
	MachineShutdown      = "shutdown"
)

// Machine is machine.json: what the machine does now.
type Machine struct {
	Status string `json:"status"`
	// Since is when the shim saw it.
	Since  string `json:"since"`
	Reason string `json:"reason,omitempty"`
}

// WriteMachine replaces machine.json. It takes no room on the disk once the file is there: that the disk is full is what it may have
// to say. Two files of one size change names, and the old one is written over the next time.
func WriteMachine(machine Machine) error {
	text, err := json.Marshal(machine)
	if err != nil {
		return err
	}
	if len(text) >= machineBytes {
		return fmt.Errorf("%s would have %d bytes", MachineFile, len(text))
	}
	padded := append(bytes.Repeat([]byte{' '}, machineBytes-1), '\n')
	copy(padded, text)
	if err := overwrite(MachineSpare, padded); err != nil {
		return err
	}
	err = exchange(MachineSpare, MachineFile)
	// ENOENT: the first time. The others: a file system, or a kernel, that cannot exchange.
	if err == syscall.ENOENT || err == syscall.EINVAL || err == syscall.ENOSYS {
		err = os.Rename(MachineSpare, MachineFile)
		if spareErr := overwrite(MachineSpare, padded); err == nil {
			err = spareErr
		}
	}
	return err
}

// ReadMachine reads machine.json; nil when there is none.
func ReadMachine() (*Machine, error) {
	text, err := os.ReadFile(MachineFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	machine := &Machine{}
	if err := json.Unmarshal(text, machine); err != nil {
		return nil, fmt.Errorf("%s: %w", MachineFile, err)
	}
	return machine, nil
}

// overwrite writes into the blocks that a file has, making the file where it is missing.
func overwrite(path string, text []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(text, 0)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}
