// Package launch starts the programs of a VM with exactly what the configuration gives them, and nothing else of the shim's.
//
// A Go process cannot set limits and drop privileges between fork and exec, and a program must be on record before it can do
// anything: a shim killed just after a plain fork would leave a VMM that nobody knows. So the shim starts itself as a launcher,
// which waits at a gate (a socket pair). The shim writes the pid down and opens the gate; the launcher then becomes the program,
// keeping pid and start time. A launcher whose shim dies reads the end of the gate and ends.
//
//	shim                               launcher
//	Prepare: fork ────────────────────▶ limits, privileges; waits at the gate
//	(pid on record)
//	Open: one byte ───────────────────▶ exec
//	end of file, or the error's text ◀─ (the gate is closed by the exec)
package launch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"

	"bandsox.dev/guest/internal/shim/procid"
)

// Command is the shim's own argument that makes it a launcher, followed by the name of a part.
const Command = "launch"

// The parts of a VM that are programs, by the names of their sections in shim.json.
const (
	VMM   = "vmm"
	Vsock = "vsock"
)

// firstFile is the descriptor of the first inherited file; the gate comes after the last one.
const firstFile = 3

// Program is a part of the VM: a launcher at first, the program itself once Open has returned.
type Program struct {
	*procid.Handle
	gate *os.File
	// Listener is where the kernel asks about the VMM's one file, once Open has returned; the caller's to close. -1: nowhere.
	Listener int
}

// listenerMark is the byte that a launcher sends its listener with.
const listenerMark = 0

// Prepare forks the launcher of a part. stdio become its descriptors 0 to 2, files those from 3 on; the caller keeps its own. In a
// new PID namespace the launcher, and so the program, is process 1: it sees nobody else, and what it forks ends with it.
func Prepare(part string, stdio [3]int, files []int, newPidNamespace bool) (*Program, error) {
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	gate := os.NewFile(uintptr(ends[0]), "gate of "+part)
	inherited := []uintptr{uintptr(stdio[0]), uintptr(stdio[1]), uintptr(stdio[2])}
	for _, file := range files {
		inherited = append(inherited, uintptr(file))
	}
	attributes := &syscall.SysProcAttr{Setsid: true}
	if newPidNamespace {
		attributes.Cloneflags = syscall.CLONE_NEWPID
	}
	// /proc/self/exe is this very program even when its file was replaced by an upgrade.
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"bandsox-shim", Command, part}, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: append(inherited, uintptr(ends[1])),
		Sys:   attributes,
	})
	closeErr := syscall.Close(ends[1])
	if err != nil {
		_ = gate.Close() // err is the news
		return nil, fmt.Errorf("fork: %w", err)
	}
	program, err := hold(pid, gate)
	if err = firstError(err, closeErr); err != nil {
		_ = gate.Close() // ends the launcher; err is the news
		return nil, err
	}
	return program, nil
}

// Open lets the launcher become the program; the error is why it could not, and then the launcher has ended and is reaped.
func (p *Program) Open() error {
	// A launcher that failed early has closed its end already: then its message is there to be read all the same.
	if _, err := p.gate.Write([]byte{1}); err != nil && !errors.Is(err, syscall.EPIPE) {
		return firstError(err, p.Abandon())
	}
	message, err := p.readGate()
	if err == nil && len(message) == 0 {
		return p.gate.Close()
	}
	if err == nil {
		err = errors.New(string(bytes.ToValidUTF8(message, []byte("?"))))
	}
	if p.Listener >= 0 {
		err = firstError(err, syscall.Close(p.Listener))
		p.Listener = -1
	}
	return firstError(err, p.Abandon())
}

// readGate reads what the launcher has to say, to the end: why it could not, and before that its listener, where it has one.
func (p *Program) readGate() (message []byte, err error) {
	const maxMessageBytes = 4096
	buffer, rights := make([]byte, maxMessageBytes), make([]byte, syscall.CmsgSpace(4))
	for len(message) < maxMessageBytes {
		n, rightsLength, _, _, err := syscall.Recvmsg(int(p.gate.Fd()), buffer, rights, syscall.MSG_CMSG_CLOEXEC)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return nil, err
		case rightsLength > 0 && p.Listener < 0:
			if p.Listener, err = descriptorIn(rights[:rightsLength]); err != nil {
				return nil, err
			}
		case n == 0:
			return message, nil
		default:
			message = append(message, buffer[:n]...)
		}
	}
	return message, nil
}

func descriptorIn(rights []byte) (int, error) {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil {
		return -1, err
	}
	if len(messages) != 1 {
		return -1, errors.New("the launcher sends more than one descriptor")
	}
	descriptors, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return descriptors[0], nil
}

// Abandon ends a launcher that was not opened, and reaps it.
func (p *Program) Abandon() error {
	closeErr := p.gate.Close()
	_, err := p.End()
	return firstError(err, closeErr)
}

// End waits for the program's end and reaps it. What it left behind in its process group is killed: the group's number cannot be
// reused before the reaping.
func (p *Program) End() (syscall.WaitStatus, error) {
	if err := p.Wait(); err != nil {
		return 0, err
	}
	// ESRCH: nobody is left, not even the unreaped leader counts.
	if err := syscall.Kill(-p.ID.Pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return 0, fmt.Errorf("kill of process group %d: %w", p.ID.Pid, err)
	}
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(p.ID.Pid, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for %d: %w", p.ID.Pid, err)
		}
		return status, nil
	}
}

func hold(pid int, gate *os.File) (*Program, error) {
	id, err := procid.Of(pid)
	if err != nil {
		return nil, fmt.Errorf("launcher %d: %w", pid, err)
	}
	handle, err := procid.Open(id)
	if err != nil {
		return nil, fmt.Errorf("launcher %d: %w", pid, err)
	}
	return &Program{Handle: handle, gate: gate, Listener: -1}, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
