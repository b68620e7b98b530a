package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"bandsox.dev/guest/internal/shim/config"
	"bandsox.dev/guest/internal/shim/launch"
	"bandsox.dev/guest/internal/shim/record"
)

// Run starts the VM of the current directory, says so on out (the starter's stdout), and stays with it to its end. It returns the
// status to exit with.
func Run(out io.Writer) int {
	vm, vmm, err := start()
	if err != nil {
		return exitFailed(out, err)
	}
	if err := announceStarted(out, vmm.ID); err != nil {
		// The starter died before it heard of this VM, and nobody else knows of it: it must not run on.
		vm.reporter.report(err)
		vm.reporter.report(vmm.Signal(syscall.SIGKILL))
	}
	vm.reporter.report(leaveStarter(vm.reporter.file))
	status, err := vmm.End()
	if err != nil {
		vm.reporter.report(err)
		vm.end(record.Exit{Unknown: true, At: record.Now()})
		return 1
	}
	vm.end(exitOf(status))
	return 0
}

func exitFailed(out io.Writer, err error) int {
	if err := announceFailed(out, err); err != nil {
		fmt.Fprintln(os.Stderr, "bandsox-shim:", err)
	}
	return 1
}

// start brings the VM up; when that fails nothing of it is left.
func start() (*vm, *launch.Program, error) {
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
	previous, err := record.ReadRun()
	if err != nil {
		return nil, nil, err
	}
	if err := refuseLiving(previous); err != nil {
		return nil, nil, err
	}
	reporter, err := openReporter(os.O_TRUNC)
	if err != nil {
		return nil, nil, err
	}
	if err := clearPrevious(settings, previous, reporter.report); err != nil {
		return nil, nil, err
	}
	machine := &vm{config: settings, reporter: reporter, lock: lock}
	vmm, err := machine.launch()
	if err != nil {
		machine.release()
		if machine.control != nil {
			machine.control.Finish(nil)
		}
		return nil, nil, firstError(err, removeIfThere(record.RunFile))
	}
	return machine, vmm, nil
}

func refuseLiving(previous *record.Run) error {
	if previous == nil {
		return nil
	}
	alive, err := previous.VMM.IsAlive()
	if err == nil && alive {
		return fail(codeAlreadyRunning, "the VMM %d of %s still runs", previous.VMM.Pid, record.RunFile)
	}
	return err
}

// clearPrevious removes what an earlier run left because its shim was killed, and the record of its end.
func clearPrevious(settings *config.Config, previous *record.Run, report func(error)) error {
	if previous != nil && previous.Vsock != nil {
		if err := endLeftover(*previous.Vsock, report); err != nil {
			return err
		}
	}
	removeLeftovers(settings, report)
	return firstError(removeIfThere(record.RunFile), removeIfThere(record.ExitFile))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
