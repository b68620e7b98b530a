package shim

import (
	"fmt"
	"os"
	"strings"

	"bandsox.dev/guest/internal/shim/cgroup"
	"bandsox.dev/guest/internal/shim/config"
	"bandsox.dev/guest/internal/shim/control"
	"bandsox.dev/guest/internal/shim/fifo"
	"bandsox.dev/guest/internal/shim/launch"
	"bandsox.dev/guest/internal/shim/onefile"
	"bandsox.dev/guest/internal/shim/procid"
	"bandsox.dev/guest/internal/shim/record"
)

// stderrTailBytes is how much of a daemon's last words goes into the message about it.
const stderrTailBytes = 2048

// launch prepares everything, puts it on record, and only then lets the programs go: first the daemon, then the VMM.
func (v *vm) launch() (*launch.Program, error) {
	fifos := []string{consoleIn}
	for path := range v.outputs() {
		fifos = append(fifos, path)
	}
	owners := v.owners()
	for _, path := range fifos {
		if err := fifo.Make(path); err != nil {
			return nil, err
		}
		if owner, given := owners[path]; given {
			if err := os.Lchown(path, int(owner), -1); err != nil {
				return nil, err
			}
		}
	}
	if group := v.config.Cgroup; group != nil {
		if err := cgroup.Make(group.Folder, group.Settings); err != nil {
			return nil, fmt.Errorf("control group: %w", err)
		}
	}
	// First of all the one that the VMM waits for: what else there is to do is done while it comes up.
	daemon, err := v.prepareDaemon()
	if err != nil {
		return nil, err
	}
	starting := record.Machine{Status: record.MachineStarting, Since: record.Now()}
	vmm, err := v.prepareVMM(starting)
	if err != nil {
		return nil, firstError(err, abandon(daemon))
	}
	if err := v.letGo(vmm, daemon); err != nil {
		return nil, err
	}
	v.watchMachine(starting)
	return vmm, nil
}

// letGo opens the prepared VMM, after all that has to be there before it. On failure the VMM has ended.
func (v *vm) letGo(vmm, daemon *launch.Program) error {
	err := v.record(vmm, daemon)
	if err != nil {
		return firstError(err, abandon(daemon), vmm.Abandon())
	}
	if daemon != nil {
		if err := v.startDaemon(daemon); err != nil {
			return firstError(err, vmm.Abandon())
		}
	}
	if err := vmm.Open(); err != nil {
		if err.Error() == onefile.ErrUnsupported.Error() { // it comes from the launcher, as a text
			return fail(codeHostUnsupported, "%w", err)
		}
		return fail(codeVMMStartFailed, "%w", err)
	}
	if vmm.Listener < 0 {
		return nil
	}
	go func() { v.reporter.report(onefile.Supply(vmm.Listener, v.config.VMM.ReadOnly)) }()
	return nil
}

// record puts both programs on record, and opens what the shim itself has of the VM.
func (v *vm) record(vmm, daemon *launch.Program) error {
	shim, err := procid.Of(os.Getpid())
	if err != nil {
		return err
	}
	bootID, namespace, err := procid.World()
	if err != nil {
		return err
	}
	v.run = record.Run{Shim: shim, VMM: vmm.ID, StartedAt: record.Now(), BootID: bootID, PidNamespace: namespace}
	vsockState := control.VsockNone
	switch {
	case daemon != nil:
		v.run.Vsock = &daemon.ID
		v.run.VsockShut = v.config.Vsock.Shut
		vsockState = control.VsockRunning
	case v.config.Vsock != nil:
		vsockState = stateWithoutDaemon(v.config.Vsock)
	}
	if err := v.listen(vmm.Handle, vsockState, false); err != nil {
		return err
	}
	return v.writeRun()
}

func stateWithoutDaemon(vsock *config.Vsock) control.VsockState {
	if vsock.Kind == config.VsockVMM {
		return control.VsockVMM
	}
	return control.VsockKernel
}

// startDaemon lets the daemon go, and waits until it is ready.
func (v *vm) startDaemon(program *launch.Program) error {
	if err := program.Open(); err != nil {
		return fail(codeVsockStartFailed, "%w", err)
	}
	v.daemon = watchDaemon(program.Handle, reap(program), v.daemonDied, v.reporter.report)
	if err := v.daemon.awaitSocket(v.config.Vsock.WaitFor); err != nil {
		return fail(codeVsockStartFailed, "%s: %w%s", v.config.Vsock.Argv[0], err, v.lastWords())
	}
	return nil
}

// lastWords ends the daemon and returns what it said, for the end of a message.
func (v *vm) lastWords() string {
	v.reporter.report(v.daemon.stop())
	said := v.taps[vsockErr]
	v.reporter.report(said.finish())
	tail, err := said.log.TailSinceOpen(stderrTailBytes)
	v.reporter.report(err)
	if len(tail) == 0 {
		return ""
	}
	return ": " + strings.ToValidUTF8(strings.TrimSpace(string(tail)), "?")
}

// prepareVMM also makes all that has to be there before the VMM; now is what its machine does.
func (v *vm) prepareVMM(now record.Machine) (*launch.Program, error) {
	if err := v.openTaps(true); err != nil {
		return nil, err
	}
	if v.config.Monitor != nil {
		if err := record.WriteMachine(now); err != nil {
			return nil, err
		}
	}
	files, err := openInherited(v.config.Files)
	if err != nil {
		return nil, err
	}
	if err := claimCID(v.config, files); err != nil {
		return nil, firstError(err, closeAll(files))
	}
	vmm, err := prepare(launch.VMM, [3]string{consoleIn, consoleOut, vmmErr}, files, v.config.VMM.NewPidNamespace)
	return vmm, firstError(err, closeAll(files))
}

// prepareDaemon returns nil where there is none.
func (v *vm) prepareDaemon() (*launch.Program, error) {
	if !v.hasDaemon() {
		return nil, nil
	}
	return prepare(launch.Vsock, [3]string{os.DevNull, vsockErr, vsockErr}, nil, false)
}

func abandon(program *launch.Program) error {
	if program == nil {
		return nil
	}
	return program.Abandon()
}

// prepare opens the program's stdio and forks its launcher.
func prepare(part string, stdio [3]string, files []int, newPidNamespace bool) (*launch.Program, error) {
	var ends [3]int
	for i, path := range stdio {
		fd, err := fifo.OpenForProgram(path)
		if err != nil {
			return nil, firstError(err, closeAll(ends[:i]))
		}
		ends[i] = fd
	}
	program, err := launch.Prepare(part, ends, files, newPidNamespace)
	closeErr := closeAll(ends[:])
	if err == nil && closeErr != nil {
		err = firstError(program.Abandon(), closeErr)
	}
	return program, err
}
