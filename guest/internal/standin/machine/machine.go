// Package machine plays the guest of a stand-in VMM: the agent's real code in this process, behind a hybrid vsock and a UART. Its
// commands and files are those of the host that it runs on.
//
// What it is told of its identity it says on the console, and keeps to itself: the host that it runs on has one of its own.
//
// What it does not keep: a machine that was loaded has its agent begin anew, so jobs and transfers of the saved one are unknown to it;
// and the agent's clocks go on while the machine is paused, so that a long pause may end a serial session (another begins). A process
// that is killed leaves the machine's commands behind: they are processes of this host.
package machine

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/links"
	"bandsox.dev/guest/internal/agent/power"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/agent/serialline"
	"bandsox.dev/guest/internal/agent/serve"
	"bandsox.dev/guest/internal/agent/tools"
	"bandsox.dev/guest/internal/serial"
	"bandsox.dev/guest/internal/standin/gate"
	"bandsox.dev/guest/internal/standin/hybrid"
)

const (
	// kernelTime is what a boot takes before the guest listens, unless Settings says otherwise: enough that there is a time before.
	kernelTime = 2 * time.Millisecond
	// driverTime lies between a driver's being there and the agent's listening.
	driverTime = time.Millisecond
	// panicTime is how long the last words of a kernel are on their way before the machine is reset (panic=1).
	panicTime = 50 * time.Millisecond
	// lastWords is how long the end of a machine waits for what is on its way to the host.
	lastWords = 100 * time.Millisecond
)

// The ways a guest may be silent.
const (
	SilentListens = "listens" // takes connections and says nothing on them
	SilentDeaf    = "deaf"    // listens nowhere
)

// Settings of a machine.
type Settings struct {
	BootArguments string
	Version       string // of the agent
	BootID        string
	Gate          *gate.Gate
	Vsock         *hybrid.Device // nil: it has none
	UART          *UART
	// IsLoaded is a machine that goes on rather than boots, Uptime after its kernel started.
	IsLoaded bool
	Uptime   time.Duration
	// Port is the one that the agent of a loaded machine listens on; 0: as its boot arguments say.
	Port uint32
	// BootTime is what a kernel takes; 0: little.
	BootTime time.Duration
	Panics   bool
	Silent   string // "" speaks
	// End is called once when the machine has ended by itself.
	End func()
}

// Machine is a guest at work.
type Machine struct {
	settings  Settings
	arguments arguments
	config    boot.Config
	server    *serve.Server
	links     links.State
	// began is when the kernel started, as the guest sees it.
	began   time.Time
	stages  atomic.Pointer[map[string]int64]
	console *os.File
	// spoken is closed when the console's last text is out.
	spoken   chan struct{}
	stopping sync.Once
	// frozen are the processes that a pause has stopped.
	frozen []int
	ports  ports
}

// Start begins the boot, or lets a loaded machine go on, and returns at once. The agent's console is this process's: one machine
// in a process.
func Start(settings Settings) (*Machine, error) {
	m := &Machine{settings: settings, arguments: parseArguments(settings.BootArguments), spoken: make(chan struct{})}
	m.began = time.Now().Add(-settings.Uptime)
	var err error
	if m.config, err = boot.ParseConfig(settings.BootArguments); err != nil {
		return nil, err
	}
	if err := m.takeConsole(); err != nil {
		return nil, err
	}
	adoptOrphans()
	m.ports.present = m.config.Port
	if settings.Port != 0 {
		m.ports.present = settings.Port
	}
	m.server = &serve.Server{
		Version: settings.Version, BootID: settings.BootID, Reaper: reaper.New(), UptimeMs: m.uptimeMs,
		Stages: m.stagesDone, Shutdown: m.Stop, Links: m.links.Message,
	}
	m.server.Snapshot.Machine, m.server.Snapshot.NoFreezer = told{}, "a stand-in has no control groups"
	m.server.Snapshot.Listen, m.server.Snapshot.Port = m.listenOn, m.Port
	go m.run()
	return m, nil
}

// takeConsole sends what the agent prints, which is what this process writes on its stderr, to the UART.
func (m *Machine) takeConsole() error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot make the console: %w", err)
	}
	os.Stderr, m.console = writer, writer
	go func() {
		defer close(m.spoken)
		text := make([]byte, inputBytes)
		for {
			n, err := reader.Read(text)
			if n > 0 && m.arguments.hasConsole {
				m.settings.UART.Print(text[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	return nil
}

func (m *Machine) run() {
	if !m.settings.IsLoaded {
		m.bootKernel()
	}
	if m.settings.Panics && !m.settings.IsLoaded {
		m.panicKernel()
		return
	}
	port := m.listen()
	if err := tools.Hold(); err != nil {
		console.Printf("%v", err) // as in a machine: everything else works
	}
	go m.server.Reaper.Run()
	if m.settings.Silent != "" {
		m.staySilent(port)
		return
	}
	now := m.uptimeMs()
	m.stages.Store(&map[string]int64{"agent": now, "ready": now})
	go m.serveVsock(port)
	go m.serveSerial()
}

func (m *Machine) bootKernel() {
	if !m.arguments.isQuiet {
		m.print("[    0.000000] Linux version 6.1.0-stand-in (a stand-in of BandSox's tests)\n[    0.000000] Command line: " +
			m.settings.BootArguments + "\n")
	}
	pause := m.settings.BootTime
	if pause == 0 {
		pause = kernelTime
	}
	time.Sleep(pause)
	m.settings.Gate.Pass()
}

func (m *Machine) panicKernel() {
	m.print("[    0.100000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n" +
		"[    0.100000] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100 ]---\n")
	time.Sleep(panicTime)
	m.settings.Gate.Pass()
	m.settings.End()
}

// Panic ends the machine as a kernel does that finds its memory to be nonsense.
func (m *Machine) Panic() { m.panicKernel() }

func (m *Machine) print(text string) {
	_, _ = io.WriteString(m.console, text) // like the agent's own: there is no other place to tell of it
}

// listen takes the agent's port; nil without a device. A loaded machine has been listening all along, also while it is paused; one
// that boots listens a moment after its driver is there, and whoever came before has been refused then.
func (m *Machine) listen() *hybrid.Port {
	device := m.settings.Vsock
	if device == nil {
		return nil
	}
	if !m.settings.IsLoaded {
		device.Activate()
		time.Sleep(driverTime)
		m.settings.Gate.Pass()
	}
	defer device.Activate()
	if m.settings.Silent == SilentDeaf {
		return nil
	}
	return m.listenFirst()
}

// serveVsock says what the real agent says (bandsox-agent's machine.go), and serves.
func (m *Machine) serveVsock(port *hybrid.Port) {
	if port == nil {
		err := fmt.Errorf("cannot listen on vsock port %d: no such device", m.Port())
		m.links.VsockWaits(err)
		m.say("%s waits for vsock: %v", m.settings.Version, err)
		return
	}
	m.links.VsockListens(m.Port())
	m.serveOn(port, fmt.Sprintf("vsock port %d", m.Port()))
}

func (m *Machine) serveSerial() {
	if m.config.Serial != serialName || !m.arguments.hasUART {
		return
	}
	line, err := m.settings.UART.open(!m.settings.IsLoaded)
	if err != nil {
		console.Printf("the serial line %s: %v", serialName, err)
		return
	}
	listener := serialline.Listen(line, serial.Settings{Coding: serial.Text, Contain: console.Contain})
	m.links.SerialServes(serialName, "uart", listener.Up)
	m.serveOn(listener, "the serial line "+serialName)
}

func (m *Machine) serveOn(listener serve.Listener, link string) {
	m.say("%s ready on %s (boot %d ms)", m.settings.Version, link, m.uptimeMs())
	m.server.Accept(listener)
}

// Uptime is how long the kernel has been there, as the guest sees it.
func (m *Machine) Uptime() time.Duration { return time.Since(m.began) }

func (m *Machine) uptimeMs() int64 { return m.Uptime().Milliseconds() }

func (m *Machine) stagesDone() map[string]int64 {
	stages := map[string]int64{}
	if done := m.stages.Load(); done != nil {
		stages = *done
	}
	return stages
}

// say prints what an agent prints that boots; a loaded one has said it before.
func (m *Machine) say(format string, args ...any) {
	if !m.settings.IsLoaded {
		console.Printf(format, args...)
	}
}

// staySilent takes connections and leaves them alone.
func (m *Machine) staySilent(port *hybrid.Port) {
	if port == nil {
		return
	}
	var held []net.Conn // one that nobody holds would be closed
	for {
		conn, err := port.Accept()
		if err != nil {
			return
		}
		held = append(held, conn)
	}
}

// Freeze stops the machine's processes; Thaw lets them go on. What passes the gate is its owner's.
func (m *Machine) Freeze() { m.frozen = append(m.frozen, freeze()...) }

// Thaw comes after Freeze.
func (m *Machine) Thaw() {
	thaw(m.frozen)
	m.frozen = nil
}

// Press is ctrl-alt-del. A machine without a keyboard driver does not hear it.
func (m *Machine) Press() {
	if m.arguments.hasKeyboard && m.settings.Silent == "" {
		m.Stop(power.Reboot, power.DefaultGrace)
	}
}

// Stop ends the machine in good order, as package power does in a real one; it returns at once.
func (m *Machine) Stop(mode string, grace time.Duration) {
	m.stopping.Do(func() {
		go func() {
			m.settings.Gate.Pass()
			console.Printf("stopping (%s), %v of grace", mode, grace)
			m.server.Stop()
			endDescendants(m.server.Reaper.StopSignals(), grace)
			m.settings.Gate.Pass()
			m.settings.End()
		}()
	})
}

// Vanish ends what is left of the machine: its processes go with it. The console's text is out when it returns.
func (m *Machine) Vanish() {
	killDescendants()
	if m.settings.Vsock != nil {
		time.Sleep(time.Millisecond) // an answer to `shutdown` has been written, and is read by the device
	}
	_ = m.console.Close() // a second end finds it closed
	select {
	case <-m.spoken:
	case <-time.After(lastWords): // paused, or nobody reads the console
	}
}

// Die ends the machine's processes, and leaves unsaid what it had to say.
func (m *Machine) Die() { killDescendants() }
