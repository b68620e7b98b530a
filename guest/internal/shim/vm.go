// Package shim stands beside one VM: it starts the VMM or takes it over, keeps its output, and clears up at its end.
package shim

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"bandsox.dev/guest/internal/shim/boundedlog"
	"bandsox.dev/guest/internal/shim/cgroup"
	"bandsox.dev/guest/internal/shim/config"
	"bandsox.dev/guest/internal/shim/console"
	"bandsox.dev/guest/internal/shim/control"
	"bandsox.dev/guest/internal/shim/fifo"
	"bandsox.dev/guest/internal/shim/monitor"
	"bandsox.dev/guest/internal/shim/procid"
	"bandsox.dev/guest/internal/shim/record"
	"bandsox.dev/guest/internal/shim/seriallink"
)

// vm is what the shim holds of its VM. Fields are filled as start or adopt goes along; release lets go of those that are.
type vm struct {
	config   *config.Config
	reporter *reporter
	lock     directoryLock
	run      record.Run

	console *console.Stream
	taps    map[string]*tap
	daemon  *daemon
	links   links
	control *control.Server
	// mu is for monitor, which clients may ask for before it is there, and for run once there are clients.
	mu sync.Mutex
	// monitor is nil when the VMM has none for us.
	monitor watcher
}

// watcher knows what the machine does.
type watcher interface {
	// Look returns when what the machine does now is known and told, or cannot be found out; an error is why.
	Look() error
	// Finish is for a VMM that has ended, and tells why it did, if that was said. It may be called again.
	Finish() (shutdown string)
}

// openTaps starts to drain the FIFOs, which exist. isNew says that the machine has yet to begin.
func (v *vm) openTaps(isNew bool) error {
	v.taps = map[string]*tap{}
	for path, logPath := range v.outputs() {
		log, err := boundedlog.Open(logPath, v.config.Console.MaxBytes, v.reporter.report)
		if err != nil {
			return err
		}
		sink := log.Write
		if path == consoleOut {
			v.console = console.NewStream(log)
			sink = v.consoleSink(isNew)
		}
		opened, err := openTap(path, log, sink)
		if err != nil && !isNew && v.isOutput(path) {
			// It lies where the VMM may write, and what a VMM does with its own log must not keep anybody from taking it over.
			v.reporter.report(fmt.Errorf("%s is gone without: %w", logPath, err))
			v.reporter.report(log.Close())
			continue
		}
		if err != nil {
			return err
		}
		v.taps[path] = opened
	}
	return nil
}

// consoleSink takes what the machine writes to its console: all of it text, or what is text of it.
func (v *vm) consoleSink(isNew bool) func([]byte) {
	if v.config.Serial == nil || v.config.Serial.Kind != config.SerialUART {
		return v.console.Write
	}
	v.links.uart = seriallink.NewUART(consoleIn, v.console.Write, !isNew || v.config.Serial.Awake)
	return v.links.uart.Write
}

// outputs are the FIFOs that the VM's programs write to, each with its log.
func (v *vm) outputs() map[string]string {
	outputs := map[string]string{consoleOut: v.config.Console.Log, vmmErr: vmmLog}
	if v.hasDaemon() {
		outputs[vsockErr] = vsockLog
	}
	for _, output := range v.config.Outputs {
		outputs[output.FIFO] = output.Log
	}
	return outputs
}

func (v *vm) isOutput(path string) bool {
	for _, output := range v.config.Outputs {
		if output.FIFO == path {
			return true
		}
	}
	return false
}

// owners are the users of those FIFOs that the VMM opens by itself.
func (v *vm) owners() map[string]uint32 {
	owners := map[string]uint32{}
	for _, output := range v.config.Outputs {
		if output.UID != nil {
			owners[output.FIFO] = *output.UID
		}
	}
	return owners
}

func (v *vm) hasDaemon() bool {
	return v.config.Vsock != nil && v.config.Vsock.Kind == config.VsockDaemon
}

// listen opens the links to the guest, and shim.sock. standsStill says that the machine does not run, as far as is known.
func (v *vm) listen(vmm *procid.Handle, vsockState control.VsockState, standsStill bool) error {
	if err := v.openLinks(standsStill); err != nil {
		return err
	}
	var err error
	v.control, err = control.Listen(control.Machine{
		VMM:       vmm.ID,
		Signal:    vmm.Signal,
		Console:   v.console,
		HoldLink:  v.links.hold,
		FreeLink:  v.links.gate.Reprieve,
		ShutVsock: v.shutVsock,
		Look:      v.look,
		Links:     v.tellLinks,
		OpenInput: func() (*os.File, error) { return fifo.Open(consoleIn) },
		Report:    v.reporter.report,
	}, vsockState)
	return err
}

// watchMachine begins to listen to what the machine does; now is what is known of it.
func (v *vm) watchMachine(now record.Machine) {
	if v.config.Monitor != nil {
		v.control.StateChanged(now)
		ears := monitor.Ears{
			Stops: v.links.machineStops, Runs: v.links.machineRuns, Changed: v.machineChanged, Report: v.reporter.report,
		}
		var started watcher
		if v.config.Monitor.Kind == config.MonitorFirecracker {
			started = monitor.StartPoll(v.config.Monitor.Socket, now, ears)
		} else {
			started = monitor.Start(v.config.Monitor.Socket, now, ears)
		}
		v.mu.Lock()
		v.monitor = started
		v.mu.Unlock()
	}
}

// look finds out what the machine does now, for a manager that has just changed it.
func (v *vm) look() error {
	v.mu.Lock()
	watching := v.monitor
	v.mu.Unlock()
	if watching == nil {
		return errors.New("this VM has no monitor")
	}
	return watching.Look()
}

// machineChanged records and tells what the machine does now.
func (v *vm) machineChanged(now record.Machine) {
	v.reporter.report(record.WriteMachine(now))
	v.control.StateChanged(now)
}

// writeRun puts the present run on record.
func (v *vm) writeRun() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return record.WriteRun(v.run)
}

// daemonDied records and tells that the link is dead. The VM goes on.
func (v *vm) daemonDied() {
	v.reporter.report(errors.New("the vsock daemon has ended"))
	v.mu.Lock()
	v.run.Vsock = nil
	v.reporter.report(record.WriteRun(v.run))
	v.mu.Unlock()
	v.control.VsockDied()
}

// end records how the VMM ended, when nothing of the VM is left. The order matters: who is told of the end may use the directory
// again at once.
func (v *vm) end(exit record.Exit) {
	if v.monitor != nil {
		exit.Shutdown = v.monitor.Finish()
	}
	v.release()
	v.reporter.report(record.WriteExit(exit))
	v.reporter.report(v.lock.release())
	v.control.Finish(&exit)
}

// release lets go of everything but the clients that wait for the end, in the reverse order of taking. The VMM has ended.
func (v *vm) release() {
	if v.control != nil {
		v.reporter.report(v.control.StopAccepting())
	}
	if v.monitor != nil {
		v.monitor.Finish()
	}
	v.links.close(v.reporter.report)
	if v.daemon != nil {
		v.reporter.report(v.daemon.stop())
	}
	for _, tap := range v.taps {
		v.reporter.report(tap.finish())
		v.reporter.report(tap.log.Close())
	}
	removeLeftovers(v.config, v.reporter.report)
	removeFolders(v.config, v.reporter.report)
}

// removeFolders removes what a manager has made for this run of the VM: not at its beginning.
func removeFolders(settings *config.Config, report func(error)) {
	for _, folder := range settings.RemoveFolders {
		// It goes from folder to folder by descriptors (openat(2)), whatever was made of the names.
		if err := os.RemoveAll(folder); err != nil {
			report(fmt.Errorf("cannot remove %s: %w", folder, err))
		}
	}
}

// removeLeftovers removes what belongs to a running VM: its processes have ended, or are killed now.
func removeLeftovers(settings *config.Config, report func(error)) {
	paths := []string{consoleIn, consoleOut, vmmErr, vsockErr, control.SocketName, record.MachineFile, record.MachineSpare}
	for _, file := range settings.Files {
		if file.Listen != "" {
			paths = append(paths, file.Listen)
		}
	}
	if settings.Vsock != nil {
		paths = append(paths, settings.Vsock.Socket, settings.Vsock.WaitFor, settings.Vsock.DaemonSocket, settings.Vsock.VMMSocket)
	}
	if settings.Serial != nil {
		paths = append(paths, settings.Serial.Socket)
	}
	for _, output := range settings.Outputs {
		paths = append(paths, output.FIFO)
	}
	if monitor := settings.Monitor; monitor != nil && monitor.Kind == config.MonitorFirecracker {
		paths = append(paths, monitor.Socket)
	}
	for _, path := range append(paths, settings.Remove...) {
		if path == "" {
			continue
		}
		err := syscall.Unlink(path)
		// ENOENT: that is how it should be. Often a path is in two lists, too.
		if err != nil && err != syscall.ENOENT && err != syscall.ENOTDIR {
			report(fmt.Errorf("cannot remove %s: %w", path, err))
		}
	}
	if settings.Cgroup != nil {
		report(cgroup.Remove(settings.Cgroup.Folder))
	}
}
