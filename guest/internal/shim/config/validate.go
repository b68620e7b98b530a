package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"bandsox.dev/guest/internal/shim/onefile"
)

// Bounds of the fields. They are generous: what they keep out is a mistake, not a large machine.
const (
	version         = 1
	defaultMaxFiles = 1024
	minMaxFiles     = 16
	maxMaxFiles     = 1 << 20
	maxArguments    = 4096
	// maxStringBytes is the kernel's own limit for one argument or variable (MAX_ARG_STRLEN, 32 pages).
	maxStringBytes = 128<<10 - 1
	maxGroups      = 64
	maxEntries     = 256
	minLogBytes    = 4 << 10
	maxLogBytes    = 1 << 30
	maxPathBytes   = 4095
	// maxSettingBytes is a page, which is all that a file of a control group takes in one write.
	maxSettingBytes = 4096
	// maxSocketPathBytes is the room in sockaddr_un without the final NUL.
	maxSocketPathBytes = 107
	// maxID is the highest user or group; -1 means "leave as it is" to setresuid(2).
	maxID = 1<<32 - 2
	// minCID is the first vsock address of a guest; 0 to 2 are the hypervisor, this machine and the host.
	minCID = 3
	maxCID = 1<<32 - 2
	// minProcesses is what a VMM has at least: its main loop, a helper or two, a thread per processor.
	minProcesses = 8
	// maxProcesses is the kernel's own limit of pids.
	maxProcesses = 1 << 22
)

// settingName is a file of a control group, such as cpu.max: of one of its controllers, never of its core (cgroup.procs).
var settingName = regexp.MustCompile(`^(cpu|io|memory|pids)\.[a-z.]{1,32}$`)

var sandboxID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// reserved are the names of the shim itself in the directory: no path of the configuration may be one of them.
var reserved = map[string]bool{
	FileName: true, "run.json": true, "exit.json": true, "machine.json": true, "machine.json.spare": true, "shim.lock": true, "shim.sock": true, "shim.log": true,
	"console.in": true, "console.out": true, "vmm.err": true, "vsock.err": true,
	"vmm.log": true, "vmm.log.1": true, "vsock.log": true, "vsock.log.1": true,
}

func (c *Config) validate() error {
	if c.Version != version {
		return fmt.Errorf("version is %d, this shim knows %d", c.Version, version)
	}
	if !sandboxID.MatchString(c.Sandbox) {
		return fmt.Errorf("sandbox %q is not 1 to 64 letters, digits, _ or -", c.Sandbox)
	}
	if err := c.VMM.validate(); err != nil {
		return fmt.Errorf("vmm: %w", err)
	}
	for _, entries := range []int{len(c.Files), len(c.Remove), len(c.RemoveFolders), len(c.Outputs)} {
		if entries > maxEntries {
			return fmt.Errorf("files, outputs, remove or removeFolders has more than %d entries", maxEntries)
		}
	}
	for i, file := range c.Files {
		if err := file.validate(); err != nil {
			return fmt.Errorf("files[%d]: %w", i, err)
		}
	}
	if err := c.Console.validate(); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	if c.Vsock != nil {
		if err := c.Vsock.validate(); err != nil {
			return fmt.Errorf("vsock: %w", err)
		}
	}
	if c.Serial != nil {
		if err := c.Serial.validate(c.Files); err != nil {
			return fmt.Errorf("serial: %w", err)
		}
	}
	if c.Monitor != nil {
		if err := c.Monitor.validate(c.Files); err != nil {
			return fmt.Errorf("monitor: %w", err)
		}
	}
	if c.Cgroup != nil {
		if err := c.Cgroup.validate(c.Sandbox); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	for i, output := range c.Outputs {
		if err := output.validate(); err != nil {
			return fmt.Errorf("outputs[%d]: %w", i, err)
		}
	}
	for i, path := range c.RemoveFolders {
		if err := validateInside(path, maxPathBytes); err != nil {
			return fmt.Errorf("removeFolders[%d]: %w", i, err)
		}
	}
	for i, path := range c.Remove {
		if err := validateInside(path, maxPathBytes); err != nil {
			return fmt.Errorf("remove[%d]: %w", i, err)
		}
		if path == c.Console.Log || path == c.Console.Log+".1" {
			return fmt.Errorf("remove[%d]: %q is the console's log", i, path)
		}
	}
	return nil
}

func (v VMM) validate() error {
	if err := validateArgv(v.Argv); err != nil {
		return err
	}
	if len(v.Env) > maxArguments {
		return fmt.Errorf("env has more than %d variables", maxArguments)
	}
	for name, value := range v.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) ||
			len(name)+1+len(value) > maxStringBytes {
			return fmt.Errorf("env: %q cannot be a variable", name)
		}
	}
	if v.Folder != "" {
		if err := validateInside(v.Folder, maxPathBytes); err != nil {
			return fmt.Errorf("folder: %w", err)
		}
	}
	if v.ReadOnly != "" {
		if err := validateInside(v.ReadOnly, maxPathBytes); err != nil {
			return fmt.Errorf("readOnly: %w", err)
		}
		if v.Folder != "" {
			return errors.New("readOnly needs a VMM that runs in the directory itself")
		}
		if v.MaxFiles <= onefile.Descriptor {
			return fmt.Errorf("readOnly needs maxFiles above %d", onefile.Descriptor)
		}
	}
	if (v.UID == nil) != (v.GID == nil) {
		return errors.New("uid and gid are given together or not at all")
	}
	if v.UID == nil && len(v.Groups) > 0 {
		return errors.New("groups needs uid and gid")
	}
	if v.UID != nil && (*v.UID > maxID || *v.GID > maxID) {
		return fmt.Errorf("uid or gid is above %d", uint32(maxID))
	}
	if len(v.Groups) > maxGroups {
		return fmt.Errorf("more than %d groups", maxGroups)
	}
	if v.MaxFiles < minMaxFiles || v.MaxFiles > maxMaxFiles {
		return fmt.Errorf("maxFiles is %d, not %d to %d", v.MaxFiles, minMaxFiles, maxMaxFiles)
	}
	if v.MaxProcesses != 0 && (v.MaxProcesses < minProcesses || v.MaxProcesses > maxProcesses) {
		return fmt.Errorf("maxProcesses is %d, not %d to %d", v.MaxProcesses, minProcesses, maxProcesses)
	}
	return nil
}

func (f File) validate() error {
	given := 0
	for _, path := range []string{f.Listen, f.Open, f.Read} {
		if path != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return errors.New("exactly one of listen, open and read is needed")
	case f.Listen != "":
		return validateInside(f.Listen, maxSocketPathBytes)
	case f.Read != "":
		return validateInside(f.Read, maxPathBytes)
	}
	// A device lies outside the directory, so any plain path goes.
	if len(f.Open) > maxPathBytes || strings.ContainsRune(f.Open, 0) {
		return fmt.Errorf("open: %q cannot be a path", f.Open)
	}
	return nil
}

func (o Output) validate() error {
	if o.UID != nil && *o.UID > maxID {
		return fmt.Errorf("uid is above %d", uint32(maxID))
	}
	if err := validateInside(o.FIFO, maxPathBytes); err != nil {
		return fmt.Errorf("fifo: %w", err)
	}
	if err := validateInside(o.Log, maxPathBytes); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	return nil
}

func (c Console) validate() error {
	if c.MaxBytes < minLogBytes || c.MaxBytes > maxLogBytes {
		return fmt.Errorf("maxBytes is %d, not %d to %d", c.MaxBytes, minLogBytes, maxLogBytes)
	}
	return validateInside(c.Log, maxPathBytes)
}

func (v Vsock) validate() error {
	if err := validateInside(v.Socket, maxSocketPathBytes); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if v.Shut && v.Kind != VsockDaemon {
		return errors.New("shut belongs to kind daemon")
	}
	switch v.Kind {
	case VsockDaemon:
		if v.CID != 0 || v.VMMSocket != "" {
			return errors.New("cid and vmmSocket do not belong to kind daemon")
		}
		if err := validateArgv(v.Argv); err != nil {
			return err
		}
		if err := validateInside(v.DaemonSocket, maxSocketPathBytes); err != nil {
			return fmt.Errorf("daemonSocket: %w", err)
		}
		return validateInside(v.WaitFor, maxSocketPathBytes)
	case VsockKernel:
		if v.hasDaemonFields() || v.VMMSocket != "" {
			return errors.New("argv, waitFor and daemonSocket belong to kind daemon, vmmSocket to kind vmm")
		}
		if v.CID < minCID || v.CID > maxCID {
			return fmt.Errorf("cid is %d, not %d to %d", v.CID, minCID, uint32(maxCID))
		}
		return nil
	case VsockVMM:
		if v.hasDaemonFields() || v.CID != 0 {
			return errors.New("argv, waitFor and daemonSocket belong to kind daemon, cid to kind kernel")
		}
		if err := validateInside(v.VMMSocket, maxSocketPathBytes); err != nil {
			return fmt.Errorf("vmmSocket: %w", err)
		}
		return nil
	default:
		return fmt.Errorf("kind %q is none of %s, %s and %s", v.Kind, VsockDaemon, VsockKernel, VsockVMM)
	}
}

func (v Vsock) hasDaemonFields() bool {
	return v.Argv != nil || v.WaitFor != "" || v.DaemonSocket != ""
}

func (s Serial) validate(files []File) error {
	if err := validateInside(s.Socket, maxSocketPathBytes); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	switch s.Kind {
	case SerialPort:
		if s.Awake {
			return errors.New("awake belongs to kind uart")
		}
		if !isListened(s.Line, files) {
			return fmt.Errorf("line %q is not one that the VMM listens on by files", s.Line)
		}
		return nil
	case SerialUART:
		if s.Line != "" {
			return errors.New("line belongs to kind port")
		}
		return nil
	default:
		return fmt.Errorf("kind %q is neither %s nor %s", s.Kind, SerialPort, SerialUART)
	}
}

func (m Monitor) validate(files []File) error {
	switch m.Kind {
	case MonitorFirecracker:
		if err := validateInside(m.Socket, maxSocketPathBytes); err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		return nil
	case MonitorQMP:
		if !isListened(m.Socket, files) {
			return fmt.Errorf("socket %q is not one that the VMM listens on by files", m.Socket)
		}
		return nil
	default:
		return fmt.Errorf("kind %q is neither %s nor %s", m.Kind, MonitorQMP, MonitorFirecracker)
	}
}

func isListened(socket string, files []File) bool {
	for _, file := range files {
		if socket != "" && file.Listen == socket {
			return true
		}
	}
	return false
}

// validate sees to it that a wrong folder is refused: everything in it will be killed at the end.
func (g Cgroup) validate(sandbox string) error {
	if len(g.Folder) > maxPathBytes || strings.ContainsRune(g.Folder, 0) || !filepath.IsAbs(g.Folder) ||
		filepath.Clean(g.Folder) != g.Folder || filepath.Base(g.Folder) != sandbox {
		return fmt.Errorf("folder %q is not an absolute plain path that ends in %s", g.Folder, sandbox)
	}
	if len(g.Settings) > maxEntries {
		return fmt.Errorf("more than %d settings", maxEntries)
	}
	for name, value := range g.Settings {
		if !settingName.MatchString(name) || value == "" || len(value) > maxSettingBytes {
			return fmt.Errorf("settings: %q is not one to set, or its value is empty or too long", name)
		}
	}
	return nil
}

func validateArgv(argv []string) error {
	if len(argv) == 0 || argv[0] == "" || len(argv) > maxArguments {
		return fmt.Errorf("argv needs 1 to %d words, the first not empty", maxArguments)
	}
	for i, word := range argv {
		if len(word) > maxStringBytes || strings.ContainsRune(word, 0) {
			return fmt.Errorf("argv[%d] is too long or holds a NUL", i)
		}
	}
	return nil
}

// validateInside accepts the plain path of something in the VM's directory that is not the shim's own.
func validateInside(path string, maxBytes int) error {
	switch {
	case path == "" || path == "." || strings.ContainsRune(path, 0):
		return fmt.Errorf("%q cannot be a path", path)
	case len(path) > maxBytes:
		return fmt.Errorf("%q is longer than %d bytes", path, maxBytes)
	case filepath.IsAbs(path) || filepath.Clean(path) != path || path == ".." || strings.HasPrefix(path, "../"):
		return fmt.Errorf("%q is not a plain path inside the directory", path)
	case reserved[path]:
		return fmt.Errorf("%q belongs to the shim", path)
	}
	return nil
}
