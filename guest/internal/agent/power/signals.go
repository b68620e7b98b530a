package power

import (
	"os"
	"os/signal"
	"syscall"

	"bandsox.dev/guest/internal/agent/console"
)

// HearSignals acts on the signals that process 1 is asked to stop by. It does not return.
//
// The kernel's own answer to ctrl-alt-del is an instant reset; it is asked for SIGINT instead. Firecracker's SendCtrlAltDel
// arrives so. There a reboot is what ends the VMM, hence SIGINT means reboot.
func (s *Stopper) HearSignals() {
	heard := make(chan os.Signal, 4)
	signal.Notify(heard, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPWR)
	if err := syscall.Reboot(syscall.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		console.Printf("cannot take ctrl-alt-del over: %v", err)
	}
	for sig := range heard {
		if sig == syscall.SIGINT {
			s.Stop(Reboot, DefaultGrace)
		} else {
			s.Stop(PowerOff, DefaultGrace)
		}
	}
}
