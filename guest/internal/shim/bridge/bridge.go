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

// Settings say what a bridge leads to.
type Settings struct {
	Dial Dial
	// Gate refuses new connections while it is quiet.
	Gate *Gate
	// Report hears of trouble with the socket itself.
	Report func(error)
}

// Statistics of a bridge, since its beginning.
type Statistics struct {
	// Open is how many connections lead to the guest now, Opened how many did so far.
	Open, Opened uint64
	ToGuest      uint64 // bytes
	FromGuest    uint64 // bytes
}

// Bridge is safe for use by many goroutines.
type Bridge struct {
	Settings
	name     string
	listener *net.UnixListener
	// places holds one entry for each open connection.
	places    chan struct{}
	localPort atomic.Uint32
	serving   sync.WaitGroup

	opened, ended      atomic.Uint64
	toGuest, fromGuest atomic.Uint64

	mu     sync.Mutex
	hosts  map[*host]struct{}
	closed bool
	// shut is set while there is nothing to lead to.
	shut bool
}

// host is a host's end of a connection.
type host struct {
	*net.UnixConn
	// leadsToGuest is set when there is another end; belongs to the bridge's lock.
	leadsToGuest bool
	// left is closed when nothing of the connection is left.
	left chan struct{}
}

// Listen starts to serve at path.
func Listen(path string, settings Settings) (*Bridge, error) {
	listener, err := ownsocket.Listen(path)
	if err != nil {
		return nil, err
	}
	bridge := &Bridge{
		Settings: settings, name: path, listener: listener,
		places: make(chan struct{}, maxConnections), hosts: map[*host]struct{}{},
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

// End ends every connection in good order, both ends, and returns when nothing is left of them, or at the limit. Connections that
// come meanwhile are not its affair: see Gate.Quiet.
func (b *Bridge) End(limit time.Duration) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for _, host := range b.interrupt() {
		select {
		case <-host.left:
		case <-deadline.C:
			return
		}
	}
}

// Shut refuses new connections from now on, without a word, and ends the open ones as End does: what they lead to is about to be taken
// away, while the machine runs.
func (b *Bridge) Shut(limit time.Duration) {
	b.setShut(true)
	b.End(limit)
}

// Reopen takes a Shut back: there is something to lead to again.
func (b *Bridge) Reopen() { b.setShut(false) }

func (b *Bridge) setShut(shut bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = shut
}

// refuses says that connections must not lead to the guest now; the lock is held.
func (b *Bridge) refuses() bool { return b.closed || b.shut || b.Gate.Quiet() }

// isQuiet says that connections end on the guest's side too.
func (b *Bridge) isQuiet() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shut || b.Gate.Quiet()
}

// Statistics are what came over the bridge so far.
func (b *Bridge) Statistics() Statistics {
	ended := b.ended.Load() // first, so that there are never fewer opened
	opened := b.opened.Load()
	return Statistics{Open: opened - ended, Opened: opened, ToGuest: b.toGuest.Load(), FromGuest: b.fromGuest.Load()}
}

// interrupt lets every connection begin to end, and returns them.
func (b *Bridge) interrupt() []*host {
	b.mu.Lock()
	defer b.mu.Unlock()
	var hosts []*host
	for host := range b.hosts {
		// An error means that the connection ends already.
		if host.leadsToGuest {
			_ = host.SetReadDeadline(time.Now())
		} else {
			_ = host.Close() // nothing was exchanged
		}
		hosts = append(hosts, host)
	}
	return hosts
}

func (b *Bridge) accept() {
	defer b.serving.Done()
	for {
		conn, err := b.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or memory: it may pass, and a tight loop would make it worse.
			b.Report(fmt.Errorf("bridge %s: %w", b.name, err))
			time.Sleep(100 * time.Millisecond)
			continue
		}
		host := &host{UnixConn: conn, left: make(chan struct{})}
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
func (b *Bridge) connect(host *host) {
	port, err := handshake.ReadConnect(host)
	if err != nil {
		return
	}
	guest, err := b.Dial(port)
	if err != nil {
		return
	}
	defer guest.Close() // what could be delivered is settled by then
	if !b.lead(host) {
		finish(guest)
		return
	}
	defer b.ended.Add(1)
	if _, err := fmt.Fprintf(host, "OK %d\n", b.localPort.Add(1)); err != nil {
		return
	}
	join(host.UnixConn, guest, &b.toGuest, &b.fromGuest)
	if b.isQuiet() {
		_ = host.Close() // at once: only the guest's end may take its time
		finish(guest)
	}
}

// lead notes that the connection has another end; false when it must not have one any more.
func (b *Bridge) lead(host *host) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuses() {
		return false
	}
	host.leadsToGuest = true
	b.opened.Add(1)
	return true
}

func (b *Bridge) enter(host *host) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuses() {
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

func (b *Bridge) leave(host *host) {
	_ = host.Close() // what could be delivered is settled; it may be closed already
	b.mu.Lock()
	delete(b.hosts, host)
	b.mu.Unlock()
	<-b.places
	close(host.left)
	b.serving.Done()
}
