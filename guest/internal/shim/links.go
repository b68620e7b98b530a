package shim

import (
	"errors"
	"sync"
	"time"

	"bandsox.dev/guest/internal/shim/bridge"
	"bandsox.dev/guest/internal/shim/config"
	"bandsox.dev/guest/internal/shim/control"
	"bandsox.dev/guest/internal/shim/record"
	"bandsox.dev/guest/internal/shim/seriallink"
	"bandsox.dev/guest/internal/vsock"
)

const (
	// holdLimit is for a manager that has the links held before it stops the machine; a busy VMM takes its time.
	holdLimit = 10 * time.Second
	// quietLimit is how long connections may take to end before the machine is stopped.
	quietLimit = 2 * time.Second
	// daemonSettle is what the manager waits for as well when it has plugged a device in (vsock-plug.ts).
	daemonSettle = 50 * time.Millisecond
)

// links are the ways of hosts to the guest.
type links struct {
	// gate is between the bridges and a machine that may stand still.
	gate   bridge.Gate
	vsock  *bridge.Bridge
	serial *bridge.Bridge
	// line is what the serial bridge leads to.
	line *seriallink.Link
	// uart is set when the line is the console's.
	uart *seriallink.UART
}

// openLinks begins to take connections. standsStill says that the machine does not run, as far as is known.
func (v *vm) openLinks(standsStill bool) error {
	var err error
	if v.config.Vsock != nil {
		if v.config.Vsock.Kind == config.VsockDaemon {
			v.links.gate.Settle = daemonSettle
		}
		v.links.vsock, err = bridge.Listen(v.config.Vsock.Socket, v.links.settings(v.dialVsock(), v.reporter.report))
		if err != nil {
			return err
		}
		if v.run.VsockShut {
			v.links.vsock.Shut(0)
		}
	}
	if v.config.Serial == nil {
		return nil
	}
	var line seriallink.Line = seriallink.Port{Socket: v.config.Serial.Line}
	if v.links.uart != nil {
		line = v.links.uart
	}
	v.links.line = seriallink.Start(line, standsStill, v.reporter.report)
	v.links.serial, err = bridge.Listen(v.config.Serial.Socket, v.links.settings(v.links.line.Dial, v.reporter.report))
	return err
}

func (l *links) settings(dial bridge.Dial, report func(error)) bridge.Settings {
	return bridge.Settings{Dial: dial, Gate: &l.gate, Report: report}
}

// dialVsock is what is behind the bridge for vsock.
func (v *vm) dialVsock() bridge.Dial {
	switch v.config.Vsock.Kind {
	case config.VsockDaemon:
		return bridge.DialSocket(v.config.Vsock.DaemonSocket, &v.links.gate)
	case config.VsockVMM:
		return bridge.DialSocket(v.config.Vsock.VMMSocket, &v.links.gate)
	}
	return func(port uint32) (bridge.Conn, error) { return vsock.Dial(v.config.Vsock.CID, port) }
}

// machineStops is called when the machine stands still, or is about to; it may be called again.
func (l *links) machineStops() {
	l.gate.Hold()
	if l.line != nil {
		l.line.Hold()
	}
}

// machineRuns is called when it is sure that the machine runs; it may be called again.
func (l *links) machineRuns() {
	l.gate.Release()
	if l.line != nil {
		l.line.Resume()
	}
}

// hold prepares for a machine that a manager is about to stop: vsock does not survive it with connections open. Firecracker resets
// them at best (its issues 6074 and 6100), and see bridge.Gate for vhost-device-vsock. What was carried over them goes on over new
// ones, so those of the serial line, which would survive, end as well: there is one way in which operations are interrupted.
func (l *links) hold() {
	l.gate.Quiesce(holdLimit, func() {
		var ending sync.WaitGroup
		for _, way := range []*bridge.Bridge{l.vsock, l.serial} {
			if way == nil {
				continue
			}
			ending.Add(1)
			go func(way *bridge.Bridge) {
				defer ending.Done()
				way.End(quietLimit)
			}(way)
		}
		ending.Wait()
	})
}

// shutVsock is for a manager that is about to unplug the vsock device, or has plugged it in again: the daemon does not survive a host's
// connection while it has no machine. The serial line goes on. The record comes first, so that a shim that takes over does as this one.
func (v *vm) shutVsock(shut bool) error {
	if !v.hasDaemon() {
		return errors.New("this VM has no vsock daemon")
	}
	v.mu.Lock()
	v.run.VsockShut = shut
	err := record.WriteRun(v.run)
	v.mu.Unlock()
	if err != nil {
		return err
	}
	if shut {
		v.links.vsock.Shut(quietLimit)
	} else {
		v.links.vsock.Reopen()
	}
	return nil
}

// close ends every connection: there is no machine any more.
func (l *links) close(report func(error)) {
	l.gate.Open()
	if l.line != nil {
		l.line.Close()
	}
	for _, way := range []*bridge.Bridge{l.vsock, l.serial} {
		if way != nil {
			report(way.Close())
		}
	}
}

// tell is the answer to who asks for the links; daemon is the state of the vsock daemon.
func (v *vm) tellLinks(daemon control.VsockState) (told control.Links) {
	if v.links.vsock != nil {
		told.Vsock = &control.VsockLink{
			Kind: v.config.Vsock.Kind, State: daemon, Traffic: trafficOf(v.links.vsock),
		}
		if !v.hasDaemon() {
			told.Vsock.State = control.VsockRunning
		}
	}
	if v.links.serial != nil {
		now := v.links.line.Statistics()
		told.Serial = &control.SerialLink{
			Kind: v.config.Serial.Kind, State: control.SerialConnecting, Traffic: trafficOf(v.links.serial),
			WindowBytes: now.WindowBytes, PayloadBytes: now.PayloadBytes,
			FramesSent: now.FramesSent, FramesResent: now.FramesResent, FramesDamaged: now.FramesDamaged,
		}
		if now.Up {
			told.Serial.State = control.SerialUp
		}
		if now.RTT > 0 {
			rtt := float64(now.RTT.Microseconds()) / 1000
			told.Serial.RTTMs = &rtt
		}
	}
	return told
}

func trafficOf(way *bridge.Bridge) control.Traffic {
	now := way.Statistics()
	return control.Traffic{Open: now.Open, Opened: now.Opened, ToGuestBytes: now.ToGuest, FromGuestBytes: now.FromGuest}
}
