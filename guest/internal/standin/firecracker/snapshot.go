package firecracker

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// stateMagic begins a state file.
const stateMagic = "BANDSOX-STAND-IN-SNAPSHOT 1\n"

// errBitcode is what is said of a state file that is none; the real format is named so.
const errBitcode = "An error occurred during bitcode serialization: bitcode error"

const pageBytes = 4096

// memoryMarks are two pages of the guest's memory, by which a memory file is known to belong to a state: Base is dirty once, with a
// machine's beginning, Top with each snapshot. So a Diff alone, or one over another's Full, is told from a whole memory.
type memoryMarks struct{ Base, Top []byte }

// snapshotState is what a state file holds.
type snapshotState struct {
	Release  string
	Config   configFile
	BootID   string
	Uptime   time.Duration
	LastPort uint32
	// AgentPort is the one that the agent listens on by then.
	AgentPort uint32
	SavedAt   time.Time
	Mmds      any
	Memory    memoryMarks
}

func (v *vmm) createSnapshot(request snapshotCreate) error {
	if err := v.afterStart(); err != nil {
		return err
	}
	if v.state == running {
		return refuse("Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
	}
	isWhole := request.SnapshotType == "Full"
	if !isWhole && !v.config.MachineConfig.TrackDirtyPages {
		if !v.version.AtLeast(1, 13) {
			return refuse("Create snapshot error: Cannot get dirty bitmap: Error getting the KVM dirty bitmap. Invalid argument (os error 22)")
		}
		isWhole = true // since 1.13 whatever is resident is taken for dirty
	}
	if v.memory.Base == nil {
		v.memory.Base = randomMark()
		isWhole = true
	}
	v.memory.Top = randomMark()
	state := snapshotState{
		Release: v.release, Config: v.config, BootID: v.bootID, Uptime: v.machine.Uptime(), Mmds: v.mmds, Memory: v.memory,
		AgentPort: v.machine.Port(), SavedAt: time.Now(),
	}
	if v.device != nil {
		state.LastPort = v.device.LastPort()
	}
	text, err := json.Marshal(state)
	if err != nil {
		return refuse("Create snapshot error: Cannot serialize the microVM state: %v", err)
	}
	// The devices are saved before any file is opened, and with that the guest's vsock is told of a reset.
	if v.device != nil {
		v.device.Sever()
	}
	v.hasSnapshot = true
	if err := os.WriteFile(request.SnapshotPath, append([]byte(stateMagic), text...), 0o666); err != nil {
		return refuse("Create snapshot error: Cannot perform open on the snapshot backing file: %s", osError(err))
	}
	if err := v.writeMemory(request.MemFilePath, isWhole); err != nil {
		return err
	}
	return nil
}

// writeMemory writes into a file that is there, when it has the right size: so a Diff is laid over its Full.
func (v *vmm) writeMemory(path string, isWhole bool) error {
	size := int64(v.config.MachineConfig.MemSizeMib) << 20
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return refuse("Create snapshot error: Cannot perform open on the memory backing file: %s", osError(err))
	}
	defer file.Close() // what matters was asked for before
	if info, err := file.Stat(); err == nil && info.Size() != size {
		if err := file.Truncate(0); err != nil {
			return refuse("Create snapshot error: Cannot perform truncate on the memory backing file: %s", osError(err))
		}
	}
	if err := file.Truncate(size); err != nil {
		return refuse("Create snapshot error: Cannot perform set_length on the memory backing file: %s", osError(err))
	}
	if isWhole {
		if _, err := file.WriteAt(v.memory.Base, 0); err != nil {
			return refuse("Create snapshot error: Cannot write memory file: %s", osError(err))
		}
	}
	if _, err := file.WriteAt(v.memory.Top, pageBytes); err != nil {
		return refuse("Create snapshot error: Cannot write memory file: %s", osError(err))
	}
	return nil
}

func randomMark() []byte {
	mark := make([]byte, 16)
	if _, err := rand.Read(mark); err != nil {
		panic(err) // getrandom(2) does not fail
	}
	return append(mark, bytes.Repeat([]byte{0xa5}, pageBytes-len(mark))...)
}

// loadSnapshot ends the process when it fails, but for a process that is already in use.
func (v *vmm) loadSnapshot(request snapshotLoad) error {
	if err := v.beforeStart(); err != nil {
		return err
	}
	if v.isConfigured {
		return refuse("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	}
	if reason := v.restore(request); reason != "" {
		return &fault{text: "Load snapshot error: Failed to restore from snapshot: " + reason, isFatal: true}
	}
	if request.ResumeVM {
		return v.resume()
	}
	return nil
}

func (v *vmm) restore(request snapshotLoad) (reason string) {
	const fromFile = "Failed to get snapshot state from file: "
	text, err := os.ReadFile(request.SnapshotPath)
	if err != nil {
		return fromFile + "Failed to open snapshot file: " + osError(err)
	}
	var state snapshotState
	if !bytes.HasPrefix(text, []byte(stateMagic)) || json.Unmarshal(text[len(stateMagic):], &state) != nil {
		return fromFile + "Failed to load snapshot state from file: " + errBitcode
	}
	v.config = state.Config
	if !v.overrideNetworks(request.NetworkOverrides) {
		return fromFile + "Unknown Network Device."
	}
	if request.VsockOverride != nil {
		if v.config.Vsock == nil {
			return fromFile + "Unknown Vsock Device."
		}
		v.config.Vsock.UDSPath = request.VsockOverride.UDSPath
	}
	v.config.MachineConfig.TrackDirtyPages = request.TrackDirtyPages || request.EnableDiffSnapshots
	if reason := v.loadMemory(request, state.Memory); reason != "" {
		return "Failed to load guest memory: " + reason
	}
	if reason := v.restoreDevices(state); reason != "" {
		return "Failed to build microVM from snapshot: Failed to restore devices: Error restoring MMIO devices: " + reason
	}
	v.isLoaded, v.bootID, v.mmds, v.memory = true, state.BootID, state.Mmds, state.Memory
	v.gate.Close()
	uptime := state.Uptime
	if request.ClockRealtime {
		uptime += time.Since(state.SavedAt) // all of the guest's clocks leap, not the one of the day alone
	}
	if err := v.startMachine(uptime, state.AgentPort); err != nil {
		return "Failed to build microVM from snapshot: " + err.Error()
	}
	v.state, v.hasSnapshot = paused, true
	return ""
}

func (v *vmm) overrideNetworks(overrides []networkOverride) bool {
	for _, override := range overrides {
		isKnown := false
		for i := range v.config.NetworkInterfaces {
			if n := &v.config.NetworkInterfaces[i]; n.IfaceID == override.IfaceID {
				n.HostDevName, isKnown = override.HostDevName, true
			}
		}
		if !isKnown {
			return false
		}
	}
	return true
}

func (v *vmm) loadMemory(request snapshotLoad, marks memoryMarks) (reason string) {
	path := ""
	if request.MemFilePath != nil {
		path = *request.MemFilePath
	} else {
		path = request.MemBackend.BackendPath
		if request.MemBackend.BackendType == "Uffd" {
			return "Error creating guest memory from uffd: Failed to connect to UDS Unix stream: a stand-in has no userfaultfd"
		}
	}
	const fromFile = "Error creating guest memory from file: "
	file, err := os.Open(path)
	if err != nil {
		return fromFile + "Failed to load guest memory: " + osError(err)
	}
	defer file.Close() // it was only read
	info, err := file.Stat()
	if err != nil {
		return fromFile + "Failed to load guest memory: " + osError(err)
	}
	if info.Size() < int64(v.config.MachineConfig.MemSizeMib)<<20 {
		return fromFile + "Failed to restore guest memory: Cannot create mmap region: The specified file offset and length is greater then file length"
	}
	found := make([]byte, 2*pageBytes)
	if _, err := file.ReadAt(found, 0); err != nil {
		return fromFile + "Failed to load guest memory: " + osError(err)
	}
	// The real one notices nothing, and its guest falls over.
	v.isNonsense = !bytes.Equal(found, append(append([]byte{}, marks.Base...), marks.Top...))
	return ""
}

func (v *vmm) restoreDevices(state snapshotState) (reason string) {
	for _, d := range v.config.Drives {
		if reason := openDrive(d); reason != "" {
			return "Block: " + reason
		}
	}
	for _, n := range v.config.NetworkInterfaces {
		if reason := v.openTap(n); reason != "" {
			return fmt.Sprintf("Net: Failed to create a network device: %s", reason)
		}
	}
	if v.config.Vsock != nil {
		if reason := v.bindVsock(v.config.Vsock.UDSPath, state.LastPort); reason != "" {
			return "VsockUnixBackend: " + reason
		}
	}
	return ""
}
