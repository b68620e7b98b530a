// Package firecracker is a stand-in for Firecracker: its API with its order and rules, over a guest that package machine plays.
//
// Texts, statuses and rules were measured on a real Firecracker 1.17, or read in its source
// (https://github.com/firecracker-microvm/firecracker).
//
// What it leaves out: KVM, seccomp, rate limits, real taps (one name is one machine's, per network namespace; none is made or needed),
// disks beyond that the files are there, CPU templates, pmem, memory hotplug, vhost-user, Uffd, gdb, and the contents of MMDS for the
// guest. A kernel is a file that begins like one.
package firecracker

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"bandsox.dev/guest/internal/standin/gate"
	"bandsox.dev/guest/internal/standin/hybrid"
	"bandsox.dev/guest/internal/standin/machine"
	"bandsox.dev/guest/internal/standin/strict"
)

// The states that GET / names.
const (
	notStarted = "Not started"
	running    = "Running"
	paused     = "Paused"
)

// Exit statuses of Firecracker's.
const (
	statusOK           = 0
	statusError        = 1
	statusBadSyscall   = 148
	statusBadConfig    = 152
	statusBadArguments = 153
)

// Host is what a VMM has of its process.
type Host struct {
	Input  io.Reader
	Output *os.File // console and log
	Errors *os.File
	// Exit ends the process.
	Exit func(status int)
}

// vmm is one process's machine. Requests come one after another, as in the real one.
type vmm struct {
	host    Host
	id      string
	release string // as it is printed
	version strict.Version
	faults  Faults
	hasPCI  bool
	log     *log
	metrics metrics

	mutex  sync.Mutex
	state  string
	config configFile
	serial serialPort
	mmds   any // nil: no data store
	// isConfigured is set by the first request that configures a machine, even one that fails: no snapshot can be loaded then.
	isConfigured bool
	isLoaded     bool
	balloonPages uint32
	taps         map[string]net.Listener // by interface
	device       *hybrid.Device
	gate         *gate.Gate
	machine      *machine.Machine
	bootID       string
	// hasSnapshot is whether one was taken since the pause.
	hasSnapshot bool
	memory      memoryMarks
	// isNonsense is a loaded memory that does not belong to its state.
	isNonsense bool
	ending     sync.Once
}

func newVMM(host Host, release string, faults Faults) (*vmm, error) {
	version, err := strict.ParseVersion(release)
	if err != nil {
		return nil, err
	}
	if faults.Old {
		version = strict.Version{Major: 1, Minor: 10}
	}
	v := &vmm{
		host: host, id: "anonymous-instance", release: release, version: version, faults: faults,
		log: newLog(host.Output), state: notStarted, taps: map[string]net.Listener{}, gate: &gate.Gate{},
	}
	v.config.MachineConfig = &machineConfig{VcpuCount: 1, MemSizeMib: 128, HugePages: "None"}
	v.config.Drives, v.config.NetworkInterfaces, v.config.Pmem = []drive{}, []network{}, []struct{}{}
	return v, nil
}

func (v *vmm) isStarted() bool { return v.state != notStarted }

func (v *vmm) beforeStart() error {
	if v.isStarted() {
		return errAfterStart
	}
	return nil
}

func (v *vmm) afterStart() error {
	if !v.isStarted() {
		return errBeforeStart
	}
	return nil
}

// configuring is at the beginning of every request that a machine's boot depends on.
func (v *vmm) configuring() error {
	if v.isStarted() {
		return errAfterStart
	}
	v.isConfigured = true
	return nil
}

// start boots what was configured.
func (v *vmm) start() error {
	if v.isStarted() {
		return errAfterStart
	}
	if v.config.BootSource.KernelImagePath == "" {
		return refuse("Start microvm error: Cannot start microvm without kernel configuration.")
	}
	if v.faults.NoKVM {
		return refuse("Start microvm error: Kvm error: The host kernel reports an invalid KVM API version: -1")
	}
	if err := v.checkKernel(v.config.BootSource.KernelImagePath); err != nil {
		return err
	}
	v.bootID = randomUUID()
	if err := v.startMachine(0, 0); err != nil {
		return refuse("Start microvm error: %v", err)
	}
	v.state = running
	return nil
}

// startMachine lets the guest begin, or go on after so much uptime, with its agent on a port.
func (v *vmm) startMachine(uptime time.Duration, port uint32) error {
	output := io.Writer(v.host.Output)
	if v.serial.SerialOutPath != nil {
		file, err := openNonblock(*v.serial.SerialOutPath)
		if err != nil {
			return fmt.Errorf("Error creating legacy device: %s", osError(err))
		}
		output = file
	}
	uart := machine.NewUART(output, v.gate)
	go uart.Hear(v.host.Input)
	if v.device != nil {
		if v.faults.VsockRefuses {
			v.device.Refuse()
		}
		if v.faults.VsockDies > 0 {
			time.AfterFunc(v.faults.VsockDies, v.device.Die)
		}
	}
	arguments := ""
	if v.config.BootSource.BootArgs != nil {
		arguments = *v.config.BootSource.BootArgs
	}
	var err error
	v.machine, err = machine.Start(machine.Settings{
		BootArguments: arguments, Version: agentVersion, BootID: v.bootID, Gate: v.gate, Vsock: v.device, UART: uart,
		IsLoaded: v.isLoaded, Uptime: uptime, Port: port, BootTime: v.faults.BootTakes, Panics: v.faults.GuestPanics, Silent: v.faults.GuestSilent,
		End: func() { v.end(statusOK) },
	})
	if err == nil {
		go v.flushNowAndThen()
	}
	return err
}

// agentVersion is what the played agent calls itself.
const agentVersion = "0.1.0"

func (v *vmm) flushNowAndThen() {
	for range time.Tick(metricsPeriod) {
		v.mutex.Lock()
		if err := v.metrics.flush(v.config); err != nil {
			v.log.error("Failed to log metrics: %v", err)
		}
		v.mutex.Unlock()
	}
}

func (v *vmm) pause() error {
	if err := v.afterStart(); err != nil {
		return err
	}
	if v.state == running {
		v.hasSnapshot = false
		v.machine.Freeze()
	}
	v.gate.Close()
	v.state = paused
	return nil
}

func (v *vmm) resume() error {
	if err := v.afterStart(); err != nil {
		return err
	}
	if v.state == paused && v.device != nil {
		if v.hasSnapshot {
			v.device.Reset()
		} else if v.faults.VsockAfterPause || v.isBetween1_16And1_17() {
			v.device.Hang()
		}
	}
	v.state = running
	v.machine.Thaw()
	v.gate.Open()
	if v.isNonsense {
		go v.machine.Panic()
	}
	return nil
}

// end is the machine's own end, or the process's.
func (v *vmm) end(status int) {
	v.ending.Do(func() {
		if v.machine != nil {
			v.machine.Vanish()
		}
		if status == statusOK {
			v.log.info("Vmm is stopping.")
		}
		if err := v.metrics.flush(v.config); err != nil {
			v.log.error("Failed to write metrics while stopping: %v", err)
		}
		if status == statusOK {
			v.log.info("Firecracker exiting successfully. exit_code=0")
		} else {
			v.log.error("Firecracker exiting with error. exit_code=%d", status)
		}
		v.host.Exit(status)
	})
}

// crash is the end by a system call that seccomp does not know.
func (v *vmm) crash(step string) {
	v.log.error("Shutting down VM after intercepting a bad syscall (16): the stand-in was told to crash at %s.", step)
	fmt.Fprintf(v.host.Errors, "stand-in-firecracker: crashed at %s, as it was told to\n", step)
	v.end(statusBadSyscall)
}

func randomUUID() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // getrandom(2) does not fail
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// isBetween1_16And1_17: those lose vsock with a pause, by issue 6100, as the fault says of any.
func (v *vmm) isBetween1_16And1_17() bool {
	return v.version.AtLeast(1, 16) && !v.version.AtLeast(1, 17)
}
