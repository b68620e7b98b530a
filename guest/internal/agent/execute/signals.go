package execute

import (
	"fmt"
	"syscall"
)

// sigRTMin is the kernel's first real-time signal; signal(7) says that C libraries keep the first ones for themselves, so a
// name counts from here and not from what a libc calls SIGRTMIN.
const sigRTMin = 32

// signalNames holds signal(7)'s names for x86 and arm64.
var signalNames = map[syscall.Signal]string{
	1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL",
	10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM", 16: "SIGSTKFLT", 17: "SIGCHLD",
	18: "SIGCONT", 19: "SIGSTOP", 20: "SIGTSTP", 21: "SIGTTIN", 22: "SIGTTOU", 23: "SIGURG", 24: "SIGXCPU", 25: "SIGXFSZ",
	26: "SIGVTALRM", 27: "SIGPROF", 28: "SIGWINCH", 29: "SIGIO", 30: "SIGPWR", 31: "SIGSYS",
}

var signalNumbers = func() map[string]syscall.Signal {
	numbers := make(map[string]syscall.Signal, len(signalNames))
	for number, name := range signalNames {
		numbers[name] = number
	}
	return numbers
}()

func nameOfSignal(number syscall.Signal) string {
	if name, known := signalNames[number]; known {
		return name
	}
	return fmt.Sprintf("SIGRTMIN+%d", int(number)-sigRTMin)
}
