package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/links"
	"bandsox.dev/guest/internal/agent/power"
	"bandsox.dev/guest/internal/agent/quiet"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/agent/serve"
	"bandsox.dev/guest/internal/agent/tools"
	"bandsox.dev/guest/internal/vsock"
)

// Small machines have 128 MiB: the collector works earlier than by default, and hard from memoryLimit on.
const (
	collectAtPercent = 50
	memoryLimit      = 64 << 20
)

// A kernel without vsock is asked again, first soon and then seldom: its module may be among the late ones. (A device that is
// plugged in later, as on QEMU after a restore, needs no waiting: one can listen without it.)
const (
	vsockRetry     = 50 * time.Millisecond
	vsockRetryMost = 2 * time.Second
)

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
	links   *links.State
	late    sync.Once
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
	stages.Done("system")
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("cannot read the boot's id: %w", err)
	}
	seen := &links.State{}
	stopper := &power.Stopper{Unmount: root.Unmount}
	server := &serve.Server{
		Version: version, BootID: strings.TrimSpace(string(bootID)), Reaper: reaper.New(),
		UptimeMs: boot.UptimeMs, Stages: stages.Snapshot, Shutdown: stopper.Stop,
		Links: seen.Message,
	}
	stopper.Refuse = server.Stop
	stopper.StopSignals = server.Reaper.StopSignals
	return &machine{config: config, modules: modules, stages: stages, stopper: stopper, server: server, links: seen}, nil
}

func (m *machine) serve() {
	for name, work := range map[string]func(){
		"collecting children": m.server.Reaper.Run,
		"hearing signals":     m.stopper.HearSignals,
		"serving vsock":       m.serveVsock,
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
	told := false
	for pause := vsockRetry; ; pause *= 2 {
		listener, err := vsock.Listen(m.config.Port)
		if err == nil {
			m.stages.Done("ready")
			m.links.VsockListens(m.config.Port)
			console.Printf("%s ready on vsock port %d (boot %d ms)", version, m.config.Port, boot.UptimeMs())
			go m.late.Do(m.finishBoot)
			m.server.Accept(listener)
			return
		}
		m.links.VsockWaits(err)
		if !told {
			told = true
			console.Printf("%s waits for vsock: %v", version, err)
			go m.late.Do(m.finishBoot)
		}
		if pause > vsockRetryMost {
			pause = vsockRetryMost
		}
		time.Sleep(pause)
	}
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
