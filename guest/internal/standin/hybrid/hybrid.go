// Package hybrid is Firecracker's hybrid vsock: a Unix socket on the host's side, ports on the guest's. It behaves as the real one was
// seen to, its faults included: no half-close, no answer while the machine is paused, connections that a snapshot kills silently.
//
// See Firecracker's docs/vsock.md, "Host-Initiated Connections".
package hybrid

import (
	"net"
	"os"
	"sync"
	"syscall"

	"bandsox.dev/guest/internal/standin/gate"
)

const (
	// FirstPort is where the ports in OK lines begin.
	FirstPort = 1 << 30
	// maxConnections is the real device's limit.
	maxConnections = 1023
	// backlog is how many connections wait for a guest that does not accept; with one more than 128 the real one was seen to refuse.
	backlog = 128
)

// Device is the socket of one machine. Listening begins when it is made, answering with Activate.
type Device struct {
	socket *net.UnixListener
	gate   *gate.Gate

	mutex       sync.Mutex
	lastPort    uint32
	ports       map[uint32]*Port
	connections map[*connection]struct{}
	isActive    bool
	isDead      bool
	// refuses closes every new connection; hangs never answers one.
	refuses, hangs bool
}

// New makes the socket. lastPort is the last one that was given out, 0 for a machine that begins. The socket's file is never removed.
func New(path string, lastPort uint32, machine *gate.Gate) (*Device, error) {
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	socket.SetUnlinkOnClose(false)
	if lastPort == 0 {
		lastPort = FirstPort - 1
	}
	return &Device{
		socket: socket, gate: machine, lastPort: lastPort,
		ports: map[uint32]*Port{}, connections: map[*connection]struct{}{},
	}, nil
}

// Activate is the guest's driver being there: what waits is answered now, and whoever came before the guest listened is refused.
func (d *Device) Activate() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if !d.isActive {
		d.isActive = true
		go d.accept()
	}
}

// Refuse closes every new connection without a word.
func (d *Device) Refuse() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.refuses = true
}

// Hang never answers a new connection again.
func (d *Device) Hang() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.hangs = true
}

// Die ends the socket and every connection; the file stays.
func (d *Device) Die() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.isDead = true
	_ = d.socket.Close() // it may have ended already
	for c := range d.connections {
		c.end()
	}
}

// LastPort is the last port that was given out.
func (d *Device) LastPort() uint32 {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.lastPort
}

// Sever is what a snapshot does to the open connections: the guest's ends are reset once the machine goes on, and the host's are not
// told before they write.
func (d *Device) Sever() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for c := range d.connections {
		c.isSevered.Store(true)
	}
}

// Reset resets the guest's ends of the severed connections. It comes before the gate is opened again.
func (d *Device) Reset() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for c := range d.connections {
		if c.isSevered.Load() {
			_ = c.near.Close() // the guest's own may have ended already
		}
	}
}

// Listen takes a port for the guest.
func (d *Device) Listen(port uint32) *Port {
	p := &Port{device: d, number: port, waiting: make(chan net.Conn, backlog), closed: make(chan struct{})}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.ports[port] = p
	return p
}

func (d *Device) accept() {
	for {
		host, err := d.socket.AcceptUnix()
		if err != nil {
			return // it was closed: nothing else ends it
		}
		d.mutex.Lock()
		isFull := len(d.connections) >= maxConnections
		d.mutex.Unlock()
		if isFull {
			_ = host.Close() // refused; nothing was exchanged
			continue
		}
		go d.meet(host)
	}
}

// meet takes a host's CONNECT.
func (d *Device) meet(host *net.UnixConn) {
	if err := waitReadable(host); err != nil {
		_ = host.Close() // it is gone
		return
	}
	d.gate.Pass()
	number, err := readConnect(host)
	if err != nil {
		_ = host.Close() // without a word
		return
	}
	d.mutex.Lock()
	d.lastPort = (d.lastPort+1)&^(1<<31) | 1<<30
	ours := d.lastPort
	port, hangs := d.ports[number], d.hangs
	isRefused := d.refuses || d.isDead || port == nil
	d.mutex.Unlock()
	switch {
	case hangs:
		// The connection stays as it is for as long as the host has patience.
	case isRefused:
		_ = host.Close() // without a word
	default:
		d.open(host, ours, port)
	}
}

func (d *Device) open(host *net.UnixConn, number uint32, port *Port) {
	near, far, err := pair()
	if err != nil {
		_ = host.Close() // out of descriptors: the real one drops it as well
		return
	}
	c := &connection{device: d, host: host, near: near}
	d.mutex.Lock()
	d.connections[c] = struct{}{}
	d.mutex.Unlock()
	if !port.offer(far) {
		_ = far.Close() // nobody has it
		c.end()         // without a word
		return
	}
	// What the guest says at once waits in the pair: the answer is the first that the host reads.
	if !c.answer(number) {
		c.end()
		return
	}
	go c.toGuest()
	go c.toHost()
}

// waitReadable waits until a host has said something, or has gone.
func waitReadable(host *net.UnixConn) error {
	raw, err := host.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		var one [1]byte
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return err != syscall.EAGAIN
	})
}

// pair gives the device's and the guest's end of a connection.
func pair() (near, far net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	ends := [2]net.Conn{}
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "vsock")
		conn, fileErr := net.FileConn(file)
		_ = file.Close() // the connection has its own
		if fileErr != nil {
			err = fileErr
			continue
		}
		ends[i] = conn
	}
	if err != nil {
		for _, end := range ends {
			if end != nil {
				_ = end.Close() // err is the news
			}
		}
		return nil, nil, err
	}
	return ends[0], guestEnd{ends[1]}, nil
}

// guestEnd has no CloseWrite: a guest's half-close is never shown to a host.
type guestEnd struct{ net.Conn }
