// Package serve answers hosts on any stream: PROTOCOL.md section 2. It knows no vsock; a listener is all it takes, so that a
// serial link can be one more.
package serve

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/execute"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/agent/snapshot"
	"bandsox.dev/guest/internal/agent/transfer"
	"bandsox.dev/guest/internal/wire"
)

const (
	// maxConnections bounds the agent's memory. PROTOCOL.md promises 128; Firecracker's device takes 1023.
	maxConnections = 512
	// acceptPause is taken after an error of accept, which is out of descriptors or memory: both pass.
	acceptPause = 100 * time.Millisecond
)

// Stream is a connection to a host. net.Conn is one.
type Stream interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Listener yields connections. net.Listener is one.
type Listener interface {
	Accept() (net.Conn, error)
	Close() error
}

// Server holds what all connections share.
type Server struct {
	Version  string
	BootID   string
	Reaper   *reaper.Reaper
	UptimeMs func() int64
	// Stages gives the boot's timings for the hello.
	Stages func() map[string]int64
	// Shutdown begins to stop the machine, and returns at once.
	Shutdown func(mode string, grace time.Duration)
	// Links says how the machine sees its links. nil: it has none, as in tests.
	Links func() wire.Links
	// Snapshot freezes the machine and tells it who it is. Its zero value does without a machine.
	Snapshot snapshot.Guest

	connections int32 // atomic
	stopping    int32 // atomic

	// transfers and jobs are what outlives a connection.
	transfers transfer.Registry
	jobs      execute.Jobs

	mutex     sync.Mutex
	listeners []Listener
	once      sync.Once
}

// Accept serves what comes from a listener until Stop or a listener's own end.
func (s *Server) Accept(listener Listener) {
	s.once.Do(func() { s.Snapshot.Reaper, s.Snapshot.LeaveJobs = s.Reaper, s.jobs.LeaveUnattended })
	s.add(listener)
	defer s.remove(listener)
	pace := &transfer.Pace{} // a listener is a link
	for {
		stream, err := listener.Accept()
		if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			console.Printf("cannot accept a connection: %v", err)
			time.Sleep(acceptPause)
			continue
		}
		if atomic.AddInt32(&s.connections, 1) > maxConnections {
			console.Printf("refused a connection: %d are open", maxConnections)
			s.done(stream)
			continue
		}
		go func() {
			defer console.Contain("serving a connection")
			defer s.done(stream)
			newConnection(s, stream, pace).serve()
		}()
	}
}

func (s *Server) add(listener Listener) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.listeners = append(s.listeners, listener)
}

func (s *Server) remove(listener Listener) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for i, each := range s.listeners {
		if each == listener {
			s.listeners = append(s.listeners[:i:i], s.listeners[i+1:]...)
			return
		}
	}
}

// Stop refuses new connections and operations, and gives up the transfers that wait for one; what runs goes on.
func (s *Server) Stop() {
	atomic.StoreInt32(&s.stopping, 1)
	s.transfers.Stop()
	s.Snapshot.Stop()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, listener := range s.listeners {
		if err := listener.Close(); err != nil {
			console.Printf("cannot close a listener: %v", err)
		}
	}
	s.listeners = nil
}

func (s *Server) links() wire.Links {
	if s.Links == nil {
		return wire.Links{Type: "links", Serial: []wire.SerialLine{}}
	}
	return s.Links()
}

func (s *Server) isStopping() bool { return atomic.LoadInt32(&s.stopping) != 0 }

func (s *Server) done(stream Stream) {
	atomic.AddInt32(&s.connections, -1)
	closeStream(stream)
}

// closeStream may be called twice.
func closeStream(stream Stream) {
	if err := stream.Close(); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, net.ErrClosed) {
		console.Printf("cannot close a connection: %v", err)
	}
}
