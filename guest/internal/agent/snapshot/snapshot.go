// Package snapshot is the guest's part in saving its state and in starting from one: PROTOCOL.md section 9.
//
// What is saved is a machine whose processes stand still, so that a copy of it can be told who it is before anything in it goes on. The
// agent alone runs, and lets them go on by itself when the host is not heard of again.
package snapshot

import (
	"encoding/base64"
	"fmt"
	"sync"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/environment"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/agent/freezer"
	"bandsox.dev/guest/internal/agent/hooks"
	"bandsox.dev/guest/internal/agent/machinetime"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/wire"
)

// What a host that does not say leaves to hooks, and how long it may be silent.
const (
	defaultHooksMs = 10000
	defaultLeaseMs = 60000
)

// syncLimit is how long the disks may take: one whose file system or device is served by a process of the guest never answers while that
// stands still.
const syncLimit = 10 * time.Second

// Identity takes what a machine is to be: package identity has the real one.
type Identity interface {
	AddEntropy(data []byte) error
	SetClock(us int64) error
	SetHostName(name string) error
	SetMachineID(id string) error
}

// Guest freezes the machine and gives it an identity. What it has not is left out, and said: the agent may serve without a machine.
type Guest struct {
	Reaper *reaper.Reaper
	// Freezer is nil without control groups; NoFreezer says why.
	Freezer   *freezer.Freezer
	NoFreezer string
	// Machine is nil where the machine is somebody else's, as in tests.
	Machine Identity
	// Hooks is the folder of the image's hooks; "": none.
	Hooks string
	// Sync writes to the disks what waits to be written. nil: nothing.
	Sync func() error
	// Listen listens on another port. Its result ends the listening on the one before. nil: there are no ports.
	Listen func(port uint32) (leave func(), err error)
	// Port is the one listened on, 0: none. nil: there are no ports.
	Port func() uint32
	// UptimeMs is the time since the machine's boot, as `pong` has it. nil: a time of day is taken to be that of its coming.
	UptimeMs func() int64
	// LeaveJobs lets commands run on without their hosts.
	LeaveJobs func()

	making, stopping sync.Once
	stopped          chan struct{}
	// mutex is held while the machine is frozen, thawed, or told who it is: one after the other.
	mutex    sync.Mutex
	isFrozen bool
	count    int
	warnings []string
	lease    *machinetime.Timer
	leases   int // tells the timer of an earlier lease from the present one's
}

func (g *Guest) prepare() { g.making.Do(func() { g.stopped = make(chan struct{}) }) }

// stopwatch notes how long the parts of something take.
type stopwatch struct {
	since  time.Time
	stages map[string]int64 // µs
}

func startWatch() *stopwatch { return &stopwatch{time.Now(), map[string]int64{}} }

func (s *stopwatch) done(stage string) {
	now := time.Now()
	s.stages[stage] = now.Sub(s.since).Microseconds()
	s.since = now
}

// Freeze runs the hooks, makes all processes stand still, and writes to the disks what waits to be written.
func (g *Guest) Freeze(message wire.Message) (wire.Frozen, error) {
	g.prepare()
	g.mutex.Lock()
	defer g.mutex.Unlock()
	lease := time.Duration(message.Integer("leaseMs", defaultLeaseMs)) * time.Millisecond
	watch := startWatch()
	if !g.isFrozen {
		if failures := g.runHooks("snapshot", message, false); len(failures) > 0 {
			return wire.Frozen{}, failure.New(failure.HookFailed, "%s", failures[0].Error())
		}
		watch.done("hooks")
		early := g.sync() // the most of it while everybody still runs
		watch.done("flush")
		if g.isStopped() {
			return wire.Frozen{}, failure.New(failure.Stopping, "cannot freeze a machine that is stopping")
		}
		g.renew(lease) // already now: whatever goes wrong, it ends
		if err := g.freeze(); err != nil {
			return wire.Frozen{}, failure.Of(err, "cannot freeze the machine's processes")
		}
		watch.done("freeze")
		for _, err := range []error{early, g.sync()} {
			if err != nil {
				g.warnings = append(g.warnings, err.Error())
			}
		}
		watch.done("sync")
	}
	g.renew(lease)
	return wire.Frozen{Type: "frozen", Processes: g.count, StagesUs: watch.stages, Warnings: wire.Remarks(g.warnings)}, nil
}

func (g *Guest) runHooks(moment string, message wire.Message, andGoOn bool) []*hooks.Failure {
	limit := time.Duration(message.Integer("hooksMs", defaultHooksMs)) * time.Millisecond
	if limit == 0 {
		return nil // nobody wants them: run with no time, each would be killed, and fail
	}
	runner := hooks.Runner{Folder: g.Hooks, Reaper: g.Reaper, Stop: g.stopped}
	return runner.Run(moment, time.Now().Add(limit), andGoOn)
}

// freeze leaves everything as it was when it fails. The mutex is held.
func (g *Guest) freeze() error {
	g.isFrozen = true
	g.Reaper.Hold(true)
	if g.Freezer == nil {
		g.count, g.warnings = 0, []string{"no process stands still: " + g.NoFreezer}
		return nil
	}
	var err error
	if g.count, g.warnings, err = g.Freezer.Freeze(); err != nil {
		g.thaw()
	}
	return err
}

func (g *Guest) sync() error {
	if g.Sync == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		defer console.Contain("writing to the disks", func() { done <- nil })
		done <- g.Sync()
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(syncLimit):
		return fmt.Errorf("the disks have not taken everything within %v", syncLimit)
	}
}

// Thaw lets all processes go on. Harmless when they do.
func (g *Guest) Thaw() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.thaw()
}

// thaw is Thaw with the mutex held.
func (g *Guest) thaw() {
	if !g.isFrozen {
		return
	}
	g.isFrozen = false
	g.endLease()
	if g.Freezer != nil {
		g.Freezer.Thaw()
	}
	g.Reaper.Hold(false)
}

// renew begins the time anew after which the machine goes on by itself. The mutex is held.
func (g *Guest) renew(lease time.Duration) {
	g.endLease()
	leases := g.leases
	g.lease = machinetime.AfterFunc(lease, func() {
		defer console.Contain("ending a lease")
		g.mutex.Lock()
		defer g.mutex.Unlock()
		if g.leases == leases && g.isFrozen {
			console.Printf("going on by itself: no host has said to within %v", lease)
			g.thaw()
		}
	})
}

func (g *Guest) endLease() {
	g.leases++
	if g.lease != nil {
		g.lease.Stop()
		g.lease = nil
	}
}

// Identify tells the machine who it is, and lets its processes go on. leave ends what only the former one was listened on for: it is
// called when the answer is written.
func (g *Guest) Identify(message wire.Message) (answer wire.Identified, leave func()) {
	g.prepare()
	g.mutex.Lock()
	defer g.mutex.Unlock()
	defer g.thaw()
	g.endLease() // the host is there
	watch := startWatch()
	var failures []string
	note := func(stage string, err error) {
		if err != nil {
			failures = append(failures, err.Error())
		}
		watch.done(stage)
	}
	g.give(message, note)
	if message.Has("env") {
		environment.Machine.Set(message.TextMap("env"))
	}
	leave = func() {}
	if message.Has("port") {
		var err error
		leave, err = g.listen(uint32(message.Integer("port", 0)))
		note("port", err)
	}
	if message.Flag("restored", false) {
		if g.LeaveJobs != nil {
			g.LeaveJobs()
		}
		watch.done("jobs")
		for _, failed := range g.runHooks("restore", message, true) {
			failures = append(failures, failed.Error())
		}
		watch.done("hooks")
	}
	g.thaw()
	watch.done("thaw")
	answer = wire.Identified{Type: "identified", StagesUs: watch.stages, Failures: wire.Remarks(failures)}
	if g.Port != nil {
		answer.Port = g.Port()
	}
	return answer, leave
}

// give gives the machine what the message has for it: entropy before anything else, as any other step might draw from it.
func (g *Guest) give(message wire.Message, note func(stage string, err error)) {
	for _, part := range []struct {
		field, stage string
		give         func() error
	}{
		{"entropy", "entropy", func() error {
			data, err := base64.StdEncoding.DecodeString(message.Text("entropy"))
			if err != nil {
				return err
			}
			return g.Machine.AddEntropy(data)
		}},
		{"timeUs", "clock", func() error { return g.Machine.SetClock(g.timeNow(message)) }},
		{"hostname", "hostname", func() error { return g.Machine.SetHostName(message.Text("hostname")) }},
		{"machineId", "machineId", func() error { return g.Machine.SetMachineID(message.Text("machineId")) }},
	} {
		switch {
		case !message.Has(part.field):
		case g.Machine == nil:
			note(part.stage, fmt.Errorf("%s is not given: the agent is not process 1 of a machine", part.field))
		default:
			note(part.stage, part.give())
		}
	}
}

// timeNow is the host's time of day, in µs: what it was at a moment, and what has passed since, as on a busy host a message may be long
// on its way.
func (g *Guest) timeNow(message wire.Message) int64 {
	us := message.Integer("timeUs", 0)
	if g.UptimeMs == nil || !message.Has("uptimeMs") {
		return us
	}
	return us + 1000*(g.UptimeMs()-message.Integer("uptimeMs", 0))
}

func (g *Guest) listen(port uint32) (leave func(), err error) {
	if g.Listen == nil {
		return func() {}, fmt.Errorf("port %d is not listened on: there are no ports here", port)
	}
	leave, err = g.Listen(port)
	if leave == nil {
		leave = func() {}
	}
	return leave, err
}

// Stop ends hooks, and lets all processes go on: a machine that stops needs them to.
func (g *Guest) Stop() {
	g.prepare()
	g.stopping.Do(func() { close(g.stopped) })
	g.Thaw()
}

func (g *Guest) isStopped() bool {
	select {
	case <-g.stopped:
		return true
	default:
		return false
	}
}
