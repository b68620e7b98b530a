package shim

import (
	"errors"
	"io"
	"os"

	"bandsox.dev/guest/internal/shim/config"
	"bandsox.dev/guest/internal/shim/control"
	"bandsox.dev/guest/internal/shim/procid"
	"bandsox.dev/guest/internal/shim/record"
)

// Adopt takes over the VM of the current directory, whose shim was killed, and stays with it to its end. It returns the status to
// exit with. A failure leaves the VM as it was.
func Adopt(out io.Writer) int {
	vm, vmm, err := takeOver()
	if err != nil {
		return exitFailed(out, err)
	}
	vm.reporter.report(announceStarted(out, vmm.ID))
	vm.reporter.report(leaveStarter(vm.reporter.file))
	err = vmm.Wait()
	vm.reporter.report(err)
	// Only a parent is told how a process ended.
	vm.end(record.Exit{Unknown: true, At: record.Now()})
	return 0
}

func takeOver() (*vm, *procid.Handle, error) {
	if err := settle(); err != nil {
		return nil, nil, err
	}
	settings, err := config.Read()
	if err != nil {
		return nil, nil, fail(codeConfigInvalid, "%w", err)
	}
	lock, err := lockDirectory()
	if err != nil {
		return nil, nil, err
	}
	run, err := record.ReadRun()
	if err != nil {
		return nil, nil, err
	}
	if run == nil {
		return nil, nil, fail(codeVMMGone, "there is no %s", record.RunFile)
	}
	reporter, err := openReporter(0)
	if err != nil {
		return nil, nil, err
	}
	vmm, err := procid.Open(run.VMM)
	if errors.Is(err, procid.ErrGone) {
		return nil, nil, clearGone(settings, *run, reporter.report)
	}
	if err != nil {
		return nil, nil, err
	}
	machine := &vm{config: settings, reporter: reporter, lock: lock, run: *run}
	return machine, vmm, machine.takeOver(vmm)
}

func (v *vm) takeOver(vmm *procid.Handle) error {
	shim, err := procid.Of(os.Getpid())
	if err != nil {
		return err
	}
	v.run.Shim = shim
	if err := v.openTaps(false); err != nil {
		return err
	}
	process, state, err := v.findVsock()
	if err != nil {
		return err
	}
	standsStill := v.config.Monitor != nil
	if standsStill {
		v.links.gate.HoldUnknown()
	}
	if err := v.listen(vmm, state, standsStill); err != nil {
		return err
	}
	if err := v.writeRun(); err != nil {
		return err
	}
	now, err := record.ReadMachine()
	v.reporter.report(err) // the VMM will be asked anyway
	if now == nil {
		now = &record.Machine{Status: record.MachineStarting, Since: record.Now()}
	}
	v.watchMachine(*now)
	if process != nil {
		v.daemon = watchDaemon(process, process.Wait, v.daemonDied, v.reporter.report)
	}
	return nil
}

// findVsock looks for the daemon on record; what is dead is taken off the record.
func (v *vm) findVsock() (*procid.Handle, control.VsockState, error) {
	switch {
	case v.config.Vsock == nil:
		return nil, control.VsockNone, nil
	case !v.hasDaemon():
		return nil, stateWithoutDaemon(v.config.Vsock), nil
	case v.run.Vsock == nil:
		return nil, control.VsockDead, nil
	}
	process, err := procid.Open(*v.run.Vsock)
	if errors.Is(err, procid.ErrGone) {
		v.run.Vsock = nil
		return nil, control.VsockDead, nil
	}
	return process, control.VsockRunning, err
}

// clearGone clears up after a VMM that ended while no shim was there, and says that it is gone.
func clearGone(settings *config.Config, run record.Run, report func(error)) error {
	if run.Vsock != nil {
		if err := endLeftover(*run.Vsock, report); err != nil {
			return err
		}
	}
	removeLeftovers(settings, report)
	removeFolders(settings, report)
	if _, err := os.Lstat(record.ExitFile); errors.Is(err, os.ErrNotExist) {
		exit := record.Exit{Unknown: true, At: record.Now(), ShimKilled: true}
		if err := record.WriteExit(exit); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return fail(codeVMMGone, "the VMM %d has ended", run.VMM.Pid)
}
