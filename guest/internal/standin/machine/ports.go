package machine

import (
	"fmt"
	"sync"

	"bandsox.dev/guest/internal/standin/hybrid"
)

// ports is where the machine listens by vsock, as bandsox-agent's ports.go has it.
type ports struct {
	mutex   sync.Mutex
	present uint32
	// opened has none without a device; for a moment two.
	opened map[uint32]*hybrid.Port
}

// Port is the one that the agent listens on, or would with a device.
func (m *Machine) Port() uint32 {
	m.ports.mutex.Lock()
	defer m.ports.mutex.Unlock()
	return m.ports.present
}

// listenFirst listens where the agent is to begin with.
func (m *Machine) listenFirst() *hybrid.Port {
	m.ports.mutex.Lock()
	defer m.ports.mutex.Unlock()
	first := m.settings.Vsock.Listen(m.ports.present)
	m.ports.opened = map[uint32]*hybrid.Port{m.ports.present: first}
	return first
}

// listenOn listens on another port, beside the present one until leave is called.
func (m *Machine) listenOn(port uint32) (leave func(), err error) {
	m.ports.mutex.Lock()
	defer m.ports.mutex.Unlock()
	m.ports.present = port
	if m.ports.opened == nil {
		return nil, nil
	}
	if m.ports.opened[port] == nil {
		next := m.settings.Vsock.Listen(port)
		m.ports.opened[port] = next
		go m.server.Accept(next)
	}
	m.links.VsockListens(port)
	return func() { m.leaveOtherPorts(port) }, nil
}

func (m *Machine) leaveOtherPorts(than uint32) {
	m.ports.mutex.Lock()
	defer m.ports.mutex.Unlock()
	for port, opened := range m.ports.opened {
		if port == than {
			continue
		}
		delete(m.ports.opened, port)
		if err := opened.Close(); err != nil {
			m.print(fmt.Sprintf("cannot leave vsock port %d: %v\n", port, err))
		}
	}
}
