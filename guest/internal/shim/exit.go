package shim

import (
	"fmt"
	"syscall"

	"bandsox.dev/guest/internal/shim/record"
)

// exitOf tells how a reaped program ended.
func exitOf(status syscall.WaitStatus) record.Exit {
	exit := record.Exit{At: record.Now()}
	if status.Signaled() {
		exit.Signal = signalName(status.Signal())
		return exit
	}
	code := status.ExitStatus()
	exit.Code = &code
	return exit
}

// signalNames are the signals that end a process; the standard library knows their numbers and descriptions only.
var signalNames = map[syscall.Signal]string{
	syscall.SIGHUP: "SIGHUP", syscall.SIGINT: "SIGINT", syscall.SIGQUIT: "SIGQUIT", syscall.SIGILL: "SIGILL",
	syscall.SIGTRAP: "SIGTRAP", syscall.SIGABRT: "SIGABRT", syscall.SIGBUS: "SIGBUS", syscall.SIGFPE: "SIGFPE",
	syscall.SIGKILL: "SIGKILL", syscall.SIGUSR1: "SIGUSR1", syscall.SIGSEGV: "SIGSEGV", syscall.SIGUSR2: "SIGUSR2",
	syscall.SIGPIPE: "SIGPIPE", syscall.SIGALRM: "SIGALRM", syscall.SIGTERM: "SIGTERM", syscall.SIGXCPU: "SIGXCPU",
	syscall.SIGXFSZ: "SIGXFSZ", syscall.SIGVTALRM: "SIGVTALRM", syscall.SIGPROF: "SIGPROF", syscall.SIGIO: "SIGIO",
	syscall.SIGSYS: "SIGSYS", syscall.SIGPWR: "SIGPWR", syscall.SIGSTKFLT: "SIGSTKFLT",
}

func signalName(signal syscall.Signal) string {
	if name, known := signalNames[signal]; known {
		return name
	}
	return fmt.Sprintf("SIG%d", int(signal))
}
