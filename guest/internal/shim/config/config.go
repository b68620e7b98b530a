// Package config reads shim.json, the manager's word on what the shim runs, and refuses whatever it does not fully understand.
package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// Config is shim.json; SHIM.md describes every field.
type Config struct {
	Version int      `json:"version"`
	Sandbox string   `json:"sandbox"`
	VMM     VMM      `json:"vmm"`
	Files   []File   `json:"files"`
	Console Console  `json:"console"`
	Vsock   *Vsock   `json:"vsock"`
	Serial  *Serial  `json:"serial"`
	Monitor *Monitor `json:"monitor"`
	Cgroup  *Cgroup  `json:"cgroup"`
	// Outputs are what the VMM writes beside its console and stderr.
	Outputs []Output `json:"outputs"`
	// Remove holds what the VMM and the vsock daemon leave behind, for the shim to remove at the end.
	Remove []string `json:"remove"`
	// RemoveFolders are removed with all that is in them.
	RemoveFolders []string `json:"removeFolders"`
}

// VMM is the program of the machine and what it may have.
type VMM struct {
	Argv   []string          `json:"argv"`
	Env    map[string]string `json:"env"`
	UID    *uint32           `json:"uid"`
	GID    *uint32           `json:"gid"`
	Groups []uint32          `json:"groups"`
	// MaxFiles is RLIMIT_NOFILE, soft and hard.
	MaxFiles uint64 `json:"maxFiles"`
	// MaxProcesses is RLIMIT_NPROC, soft and hard: processes and threads of the user, not of this VM alone. 0: as it is.
	MaxProcesses uint64 `json:"maxProcesses"`
	// Folder of the VM's directory that the VMM runs in; "": the directory itself.
	Folder string `json:"folder"`
	// NewPidNamespace makes the VMM the first process of a PID namespace.
	NewPidNamespace bool `json:"newPidNamespace"`
	// ReadOnly is the path of a file that the VMM opens for writing, and gets for reading; see package onefile. "": none.
	ReadOnly string `json:"readOnly"`
}

// Output is a FIFO that the VMM opens by its name, and the log that it is drained into.
type Output struct {
	FIFO string `json:"fifo"`
	Log  string `json:"log"`
	// UID owns the FIFO; nil: as the shim.
	UID *uint32 `json:"uid"`
}

// File is one descriptor the VMM inherits: exactly one of them is set.
type File struct {
	Listen string `json:"listen"`
	Open   string `json:"open"`
	Read   string `json:"read"`
}

// Console says where the machine's output is kept.
type Console struct {
	Log      string `json:"log"`
	MaxBytes int64  `json:"maxBytes"`
}

// Kinds of Vsock.
const (
	VsockDaemon = "daemon"
	VsockKernel = "kernel"
	VsockVMM    = "vmm"
)

// Vsock says how the host reaches the guest's vsock ports: on Socket, where the shim bridges to the kernel (CID), to a daemon
// (Argv, WaitFor, DaemonSocket), or to a socket of the VMM's own (VMMSocket).
type Vsock struct {
	Kind         string   `json:"kind"`
	Socket       string   `json:"socket"`
	CID          uint32   `json:"cid"`
	Argv         []string `json:"argv"`
	WaitFor      string   `json:"waitFor"`
	DaemonSocket string   `json:"daemonSocket"`
	VMMSocket    string   `json:"vmmSocket"`
	// Shut says that the machine has no vsock device yet: connections are refused until open-vsock. Of kind daemon.
	Shut bool `json:"shut"`
}

// Kinds of Serial.
const (
	SerialPort = "port"
	SerialUART = "uart"
)

// Serial says how the host reaches the guest's agent over a serial line: on Socket, where the shim bridges to the VMM's end of a
// virtio-serial port (Line, one of those that the VMM listens on), or to the console's UART.
type Serial struct {
	Kind   string `json:"kind"`
	Socket string `json:"socket"`
	Line   string `json:"line"`
	// Awake says that the guest's agent has the line in hand already: its machine goes on from a saved state. Of kind uart.
	Awake bool `json:"awake"`
}

// Kinds of Monitor.
const (
	// MonitorQMP speaks the QEMU Machine Protocol.
	MonitorQMP = "qmp"
	// MonitorFirecracker is Firecracker's API, which tells nothing by itself: it is asked.
	MonitorFirecracker = "firecracker"
)

// Monitor says where the VMM tells what its machine does. With kind qmp Socket is one of those that the VMM listens on, and the
// shim's alone; with kind firecracker the VMM makes it, and it is everybody's.
type Monitor struct {
	Kind   string `json:"kind"`
	Socket string `json:"socket"`
}

// Cgroup is the control group (v2) of the VMM and the vsock daemon: a folder that the shim makes and removes.
type Cgroup struct {
	Folder string `json:"folder"`
	// Settings holds what is written into the files of the folder, by their names.
	Settings map[string]string `json:"settings"`
}

// FileName is the configuration's name in the VM's directory.
const FileName = "shim.json"

// maxFileBytes is far above any real configuration, and keeps a wrong file from filling the memory.
const maxFileBytes = 1 << 20

// Read reads and checks shim.json of the current directory.
func Read() (*Config, error) {
	file, err := os.Open(FileName)
	if err != nil {
		return nil, err
	}
	defer file.Close() // opened for reading: closing loses nothing
	text, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", FileName, maxFileBytes)
	}
	config, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileName, err)
	}
	return config, nil
}

// Parse decodes and checks a configuration.
func Parse(text []byte) (*Config, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	config := &Config{VMM: VMM{MaxFiles: defaultMaxFiles}}
	if err := decoder.Decode(config); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the configuration's end")
	}
	if err := config.validate(); err != nil {
		return nil, err
	}
	return config, nil
}
