// Package control serves shim.sock: it tells any number of clients what becomes of the VM, and lets them signal it and use its
// console.
package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/shim/console"
	"bandsox.dev/guest/internal/shim/ownsocket"
	"bandsox.dev/guest/internal/shim/procid"
	"bandsox.dev/guest/internal/shim/record"
)

// SocketName is the socket's name in the VM's directory.
const SocketName = "shim.sock"

const (
	maxClients = 64
	// farewellLimit is how long a client may take to read its last bytes once the VM has ended.
	farewellLimit = time.Second
)

// Machine is the VM that clients ask about.
type Machine struct {
	VMM     procid.ID
	Signal  func(syscall.Signal) error
	Console *console.Stream
	// HoldLink ends the traffic with a machine that is about to be stopped, and keeps it away; it returns when that is done.
	HoldLink func()
	// FreeLink takes a HoldLink back, where the machine was not stopped after all.
	FreeLink func()
	// ShutVsock ends vsock, and keeps hosts away from it, while the machine has no device for it; or lets them come again.
	ShutVsock func(shut bool) error
	// Look finds out what the machine does now.
	Look func() error
	// Links tells of the ways to the guest, of which vsock is in the state given.
	Links func(vsock VsockState) Links
	// OpenInput opens another writing end of the console.
	OpenInput func() (*os.File, error)
	// Report hears of trouble that no client can be told.
	Report func(error)
}

// Server is safe for use by many goroutines.
type Server struct {
	machine  Machine
	listener *net.UnixListener
	serving  sync.WaitGroup

	mu      sync.Mutex
	clients map[*client]struct{}
	vsock   VsockState
	// state is nil while nobody has said what the machine does.
	state *record.Machine
	// stopping is set when the VM has ended: a client accepted since then came too late.
	stopping bool
}

// Listen starts to serve. vsock is the state of the link so far.
func Listen(machine Machine, vsock VsockState) (*Server, error) {
	listener, err := ownsocket.Listen(SocketName)
	if err != nil {
		return nil, err
	}
	server := &Server{machine: machine, listener: listener, clients: map[*client]struct{}{}, vsock: vsock}
	server.serving.Add(1)
	go server.accept()
	return server, nil
}

// VsockDied tells every client, and those to come, that the link's daemon has ended.
func (s *Server) VsockDied() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vsock = VsockDead
	s.broadcast(plainEvent{Event: "vsock-died"})
}

// StateChanged tells every client, and those to come, what the machine does now.
func (s *Server) StateChanged(state record.Machine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = &state
	s.broadcast(machineEvent{Event: "machine", Machine: state})
}

// StopAccepting closes the door; those inside wait for Finish.
func (s *Server) StopAccepting() error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	return s.listener.Close()
}

// Finish tells every client how the VM ended, unless it never began (nil), and parts from them, at the latest after farewellLimit.
func (s *Server) Finish(exit *record.Exit) {
	s.mu.Lock()
	if exit != nil {
		s.broadcast(exitedEvent{Event: "exited", Exit: *exit})
	}
	for client := range s.clients {
		client.part(farewellLimit)
	}
	s.mu.Unlock()
	s.serving.Wait()
}

func (s *Server) accept() {
	defer s.serving.Done()
	for {
		conn, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or memory: it may pass, and a tight loop would make it worse.
			s.machine.Report(fmt.Errorf("%s: %w", SocketName, err))
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.admit(conn)
	}
}

// admit greets a new client. Its status and its place among those who hear of changes are one step, so that it misses none.
func (s *Server) admit(conn *net.UnixConn) {
	client := newClient(conn, s.machine, s.links)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || len(s.clients) == maxClients {
		client.refuse(fmt.Sprintf("%d clients are connected already, or the VM has ended", len(s.clients)))
		return
	}
	client.say(statusEvent{Event: "status", VMM: s.machine.VMM, Vsock: s.vsock, State: s.state})
	s.clients[client] = struct{}{}
	s.serving.Add(1)
	go func() {
		defer s.serving.Done()
		client.serve()
		s.mu.Lock()
		delete(s.clients, client)
		s.mu.Unlock()
	}()
}

func (s *Server) links() Links {
	s.mu.Lock()
	vsock := s.vsock
	s.mu.Unlock()
	return s.machine.Links(vsock)
}

// broadcast is called with the lock held.
func (s *Server) broadcast(event any) {
	for client := range s.clients {
		client.say(event)
	}
}
