package main

import (
	"sync"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/vsock"
)

// ports is where the machine listens by vsock.
type ports struct {
	mutex     sync.Mutex
	present   uint32
	listeners map[uint32]*vsock.Listener // none while there is no vsock; for a moment two
}

// listen opens a port. The ports' mutex is held.
func (m *machine) listen(port uint32) (*vsock.Listener, error) {
	listener, err := vsock.Listen(port)
	if err == nil {
		m.ports.present = port
		m.ports.listeners[port] = listener
		m.links.VsockListens(port)
	}
	return listener, err
}

// port is the one that the machine listens on, or will as soon as there is vsock.
func (m *machine) port() uint32 {
	m.ports.mutex.Lock()
	defer m.ports.mutex.Unlock()
	return m.ports.present
}

// listenOn listens on another port, beside the present one until leave is called. By the serial line any port is as good.
func (m *machine) listenOn(port uint32) (leave func(), err error) {
	m.ports.mutex.Lock()
	defer m.ports.mutex.Unlock()
	if len(m.ports.listeners) == 0 {
		m.ports.present = port
		return nil, nil
	}
	if m.ports.listeners[port] != nil {
		m.links.VsockListens(port)
	} else {
		listener, err := m.listen(port)
		if err != nil {
			return nil, err
		}
		go func() {
			defer console.Contain("serving vsock")
			m.server.Accept(listener)
		}()
	}
	m.ports.present = port
	return func() { m.leaveOtherPorts(port) }, nil
}

func (m *machine) leaveOtherPorts(than uint32) {
	m.ports.mutex.Lock()
	defer m.ports.mutex.Unlock()
	for port, listener := range m.ports.listeners {
		if port == than {
			continue
		}
		delete(m.ports.listeners, port)
		if err := listener.Close(); err != nil {
			console.Printf("cannot leave vsock port %d: %v", port, err)
		}
	}
}
