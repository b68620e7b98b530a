package main

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/freezer"
	"bandsox.dev/guest/internal/agent/hooks"
	"bandsox.dev/guest/internal/agent/identity"
	"bandsox.dev/guest/internal/agent/links"
	"bandsox.dev/guest/internal/agent/power"
	"bandsox.dev/guest/internal/agent/quiet"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/agent/serialline"
	"bandsox.dev/guest/internal/agent/serve"
	"bandsox.dev/guest/internal/agent/tools"
	"bandsox.dev/guest/internal/serial"
	"bandsox.dev/guest/internal/vsock"
)

// Small machines have 128 MiB: the collector works earlier than by default, and hard from memoryLimit on.
const (
	collectAtPercent = 50
	memoryLimit      = 64 << 20
)

// A link that is not there is looked for again, first soon and then seldom: its module may be among the late ones. (A vsock device
// that is plugged in later, as on QEMU after a restore, needs no waiting: one can listen without it.)
const (
	linkRetry     = 50 * time.Millisecond
	linkRetryMost = 2 * time.Second
	// serialSearch is how long a serial port is looked for that nobody has promised.
	serialSearch = 10 * time.Second
)

// kinds are PROTOCOL.md's words for lines.
var kinds = map[serial.Coding]string{serial.Raw: "port", serial.Text: "uart"}

// runMachine boots and serves. It never returns: the end of process 1 is a kernel panic.
func runMachine() {
	debug.SetGCPercent(collectAtPercent)
	debug.SetMemoryLimit(memoryLimit)
	stages := &boot.Stages{}
	stages.Done("agent")
	machine, err := start(stages)
	if err != nil {
		// Nothing can be served without a root. Ending now tells the host more, and sooner, than its own timeout.
		console.Printf("cannot boot: %v", err)
		power.Restart()
		select {}
	}
	machine.serve()
}

// machine is a booted one.
type machine struct {
	config  boot.Config
	modules *boot.Modules
	stages  *boot.Stages
	stopper *power.Stopper
	server  *serve.Server
	ready   sync.Once
	links   *links.State
	late    sync.Once
	// stopping is set when the links are closed for good.
	stopping atomic.Bool
	ports    ports
}

func start(stages *boot.Stages) (*machine, error) {
	if err := boot.EarlyMounts(); err != nil {
		return nil, err
	}
	if err := quiet.Monitor(); err != nil {
		console.Printf("%v", err) // slower, but right
	}
	if err := tools.Hold(); err != nil {
		console.Printf("%v", err) // everything else works
	}
	config, err := boot.ReadConfig()
	if err != nil {
		return nil, err
	}
	modules, err := boot.OpenModules()
	if err != nil {
		return nil, err
	}
	modules.Load("load.boot")
	stages.Done("modules")
	root, err := boot.Assemble(config, stages)
	if err != nil {
		return nil, err
	}
	boot.SystemMounts()
	root.MountStores()
	boot.Identify(config)
	boot.SetLimits()
	known := &identity.Machine{}
	if err := known.Hold(); err != nil {
		console.Printf("cannot hold the random generator: %v", err)
	}
	processes, noFreezer := openFreezer()
	stages.Done("system")
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("cannot read the boot's id: %w", err)
	}
	seen := &links.State{}
	stopper := &power.Stopper{Unmount: root.Unmount, PowerOff: config.PowerOff}
	server := &serve.Server{
		Version: version, BootID: strings.TrimSpace(string(bootID)), Reaper: reaper.New(),
		UptimeMs: boot.UptimeMs, Stages: stages.Snapshot, Shutdown: stopper.Stop,
		Links: seen.Message,
	}
	machine := &machine{config: config, modules: modules, stages: stages, stopper: stopper, server: server, links: seen}
	machine.ports = ports{present: config.Port, listeners: map[uint32]*vsock.Listener{}}
	server.Snapshot.Freezer, server.Snapshot.NoFreezer = processes, noFreezer
	server.Snapshot.Machine, server.Snapshot.Hooks, server.Snapshot.UptimeMs = known, hooks.Folder, boot.UptimeMs
	server.Snapshot.Sync, server.Snapshot.Listen, server.Snapshot.Port = root.Sync, machine.listenOn, machine.port
	stopper.Refuse = machine.refuse
	stopper.StopSignals = server.Reaper.StopSignals
	return machine, nil
}

// openFreezer takes hold of the control groups as they are at boot, or says why there are none.
func openFreezer() (*freezer.Freezer, string) {
	processes, err := freezer.Open(freezer.Root)
	if err != nil {
		console.Printf("%v", err)
		return nil, err.Error()
	}
	return processes, ""
}

func (m *machine) refuse() {
	m.stopping.Store(true)
	m.server.Stop()
}

func (m *machine) serve() {
	for name, work := range map[string]func(){
		"collecting children": m.server.Reaper.Run,
		"hearing signals":     m.stopper.HearSignals,
		"serving vsock":       m.serveVsock,
		"serving serially":    m.serveSerial,
	} {
		go func(name string, work func()) {
			defer console.Contain(name)
			work()
		}(name, work)
	}
	select {}
}

// serveVsock listens as soon as there is a vsock device.
func (m *machine) serveVsock() {
	var listener *vsock.Listener
	var port uint32
	m.find("vsock", 0, func() (err error) {
		m.ports.mutex.Lock()
		defer m.ports.mutex.Unlock()
		port = m.ports.present
		if listener, err = m.listen(port); err != nil {
			m.links.VsockWaits(err)
		}
		return err
	})
	m.serveOn(listener, fmt.Sprintf("vsock port %d", port))
}

// serveSerial opens the serial line as soon as it is there, and again should it end.
func (m *machine) serveSerial() {
	name, search := m.config.Serial, time.Duration(0)
	if name == "" {
		name, search = serialline.DefaultPort, serialSearch
	}
	for {
		var line io.ReadWriteCloser
		var coding serial.Coding
		isThere := m.find("the serial line", search, func() (err error) {
			line, coding, err = serialline.Open(name)
			return err
		})
		if !isThere {
			return
		}
		listener := serialline.Listen(line, serial.Settings{Coding: coding, Contain: console.Contain})
		m.links.SerialServes(name, kinds[coding], listener.Up)
		m.serveOn(listener, "the serial line "+name)
		if m.stopping.Load() {
			return
		}
		// A terminal is taken from all who have it open when a login begins on it (vhangup(2)).
		if err := listener.End(); err != nil {
			console.Printf("the serial line %s ended: %v", name, err)
		}
		time.Sleep(linkRetryMost)
	}
}

// find opens a link, trying until it is there. A search with a limit is for what need not be there: it ends without a word, and false.
func (m *machine) find(what string, limit time.Duration, open func() error) bool {
	told := limit > 0
	deadline := time.Now().Add(limit)
	for pause := linkRetry; ; pause *= 2 {
		err := open()
		if err == nil {
			return true
		}
		if !told {
			told = true
			console.Printf("%s waits for %s: %v", version, what, err)
			go m.late.Do(m.finishBoot)
		}
		if limit > 0 && time.Now().After(deadline) {
			return false
		}
		if pause > linkRetryMost {
			pause = linkRetryMost
		}
		time.Sleep(pause)
	}
}

// serveOn serves a link until its end. The first one is the machine's being ready.
func (m *machine) serveOn(listener serve.Listener, link string) {
	m.ready.Do(func() { m.stages.Done("ready") })
	console.Printf("%s ready on %s (boot %d ms)", version, link, boot.UptimeMs())
	go m.late.Do(m.finishBoot)
	m.server.Accept(listener)
}

// finishBoot does what nobody waits for.
func (m *machine) finishBoot() {
	defer console.Contain("loading the late modules")
	boot.JoinGroups()
	m.modules.Load("load.late")
	m.modules.Discard()
	m.stages.Done("late")
	m.stopper.HearButtons()
}
