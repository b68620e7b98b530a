// Package bridge gives any vsock the shape of Firecracker's: a Unix socket on which the host says CONNECT and a port, and then has
// a stream to the guest.
package bridge

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"bandsox.dev/guest/internal/handshake"
	"bandsox.dev/guest/internal/shim/ownsocket"
)

const (
	// maxConnections is Firecracker's own limit.
	maxConnections = 1023
	// firstLocalPort is where Firecracker begins to count the ports of its OK lines.
	firstLocalPort = 1 << 30
)

// Dial connects to a port of the guest, within about two seconds: the kernel's own limit for vsock, and Firecracker's.
type Dial func(port uint32) (Conn, error)

// Bridge is safe for use by many goroutines.
type Bridge struct {
	listener *net.UnixListener
	dial     Dial
	report   func(error)
	// places holds one entry for each open connection.
	places    chan struct{}
	localPort atomic.Uint32
	serving   sync.WaitGroup

	mu     sync.Mutex
	hosts  map[*net.UnixConn]struct{}
	closed bool
}

// Listen starts to serve at path. report hears of trouble with the socket itself.
func Listen(path string, dial Dial, report func(error)) (*Bridge, error) {
	listener, err := ownsocket.Listen(path)
	if err != nil {
		return nil, err
	}
	bridge := &Bridge{
		listener: listener, dial: dial, report: report,
		places: make(chan struct{}, maxConnections), hosts: map[*net.UnixConn]struct{}{},
	}
	bridge.localPort.Store(firstLocalPort - 1)
	bridge.serving.Add(1)
	go bridge.accept()
	return bridge, nil
}

// Close ends the bridge and every connection over it.
func (b *Bridge) Close() error {
	b.mu.Lock()
	b.closed = true
	err := b.listener.Close()
	for host := range b.hosts {
		// The connection's own goroutine closes it too and has the error.
		_ = host.Close()
	}
	b.mu.Unlock()
	b.serving.Wait()
	return err
}

func (b *Bridge) accept() {
	defer b.serving.Done()
	for {
		host, err := b.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or memory: it may pass, and a tight loop would make it worse.
			b.report(fmt.Errorf("vsock bridge: %w", err))
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if !b.enter(host) {
			_ = host.Close() // refused without a word, like Firecracker; nothing was exchanged
			continue
		}
		go func() {
			b.connect(host)
			b.leave(host)
		}()
	}
}

// connect is the life of one connection. Whatever fails closes it without a word, like Firecracker.
func (b *Bridge) connect(host *net.UnixConn) {
	port, err := handshake.ReadConnect(host)
	if err != nil {
		return
	}
	guest, err := b.dial(port)
	if err != nil {
		return
	}
	defer guest.Close() // join has settled what could be delivered
	if _, err := fmt.Fprintf(host, "OK %d\n", b.localPort.Add(1)); err != nil {
		return
	}
	join(host, guest)
}

func (b *Bridge) enter(host *net.UnixConn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	select {
	case b.places <- struct{}{}:
	default:
		return false
	}
	b.hosts[host] = struct{}{}
	b.serving.Add(1)
	return true
}

func (b *Bridge) leave(host *net.UnixConn) {
	_ = host.Close() // join has settled what could be delivered; Close may have been here first
	b.mu.Lock()
	delete(b.hosts, host)
	b.mu.Unlock()
	<-b.places
	b.serving.Done()
}
