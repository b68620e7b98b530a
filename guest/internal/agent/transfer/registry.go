package transfer

import (
	"sync"
	"time"

	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/agent/machinetime"
	"bandsox.dev/guest/internal/wire"
)

const (
	// defaultWait is how long a transfer waits for another connection, and how long a finished upload is remembered
	// (PROTOCOL.md section 5).
	defaultWait = 60 * time.Second
	// maxWaiting bounds the transfers that wait: each has an open file, and an upload a temporary one.
	maxWaiting = 64
	// maxFinished bounds the uploads that are remembered, each some 250 bytes. It is more than a host can finish in the moment
	// that it takes to ask again.
	maxFinished = 4096
)

// Registry holds the transfers that have a name, with a connection or without: PROTOCOL.md section 5. Its zero value is ready.
type Registry struct {
	// Wait is how long a transfer waits for another connection; 0: as the protocol says.
	Wait time.Duration

	mutex   sync.Mutex
	stopped bool
	open    map[string]*named
	waiting []*named // of open, those without a connection; the one that has waited longest first
	// finished are uploads whose answer may have been lost. Those in order which it does not have are forgotten already.
	finished map[string]*finished
	order    []*finished
}

// state is a transfer apart from its connection.
type state interface {
	// release removes what the transfer has made or holds open.
	release()
}

// named is a transfer with a name.
type named struct {
	registry *Registry
	name     string
	kind     string
	state    state   // nil while it is being opened
	holder   *holder // nil: it waits
	expiry   *machinetime.Timer
	parkings int // tells a timer of an earlier waiting from the present one's
}

// holder is a connection's hold on a transfer. Only its operation touches the transfer's state until it lets go, by exactly one
// of park, drop and finish. Of a transfer without a name it is nil.
type holder struct {
	of     *named
	hangUp func()
	left   chan struct{} // closed when it has let go
}

// finished is what the host is told again of an upload.
type finished struct {
	name     string
	size     int64
	checksum string
	expiry   *machinetime.Timer
}

func (r *Registry) wait() time.Duration {
	if r.Wait > 0 {
		return r.Wait
	}
	return defaultWait
}

// take gives the transfer that a message names to the connection that hangUp ends: one without a state is to be opened, and
// `finished` is one that is over. Without a name it gives nothing. A connection that has it already is closed, and take waits
// until that one's operation is out of it; which may last as long as a sync.
func (r *Registry) take(kind string, message wire.Message, hangUp func()) (*holder, *finished, error) {
	name, offset := message.Text("transfer"), message.Integer("offset", 0)
	if name == "" {
		if offset > 0 {
			return nil, nil, wire.Violatef(wire.MessageInvalid, "offset without transfer")
		}
		return nil, nil, nil
	}
	for {
		r.mutex.Lock()
		n, known := r.open[name]
		over, isOver := r.finished[name]
		switch {
		case known && n.kind != kind, isOver && kind != "upload":
			r.mutex.Unlock()
			return nil, nil, wire.Violatef(wire.MessageInvalid, "a %s by the name of another operation", kind)
		case known && n.holder != nil:
			before := n.holder
			r.mutex.Unlock()
			before.hangUp()
			<-before.left
			continue
		case !known && isOver:
			r.mutex.Unlock()
			return nil, over, nil
		case !known && offset > 0:
			r.mutex.Unlock()
			return nil, nil, failure.New(failure.TransferUnknown, "cannot go on with a transfer at %d bytes: it is not known (any more)", offset)
		case !known:
			n = &named{registry: r, name: name, kind: kind}
			if r.open == nil {
				r.open = map[string]*named{}
			}
			r.open[name] = n
		default:
			n.expiry.Stop() // one that fires all the same finds a holder
			r.removeWaiting(n)
		}
		n.holder = &holder{of: n, hangUp: hangUp, left: make(chan struct{})}
		taken := n.holder
		r.mutex.Unlock()
		return taken, nil, nil
	}
}

// Stop releases what waits, and lets nothing wait any more.
func (r *Registry) Stop() {
	r.mutex.Lock()
	waiting := r.waiting
	r.stopped, r.waiting = true, nil
	for _, n := range waiting {
		n.expiry.Stop()
		delete(r.open, n.name)
	}
	r.mutex.Unlock()
	for _, n := range waiting {
		n.state.release()
	}
}

// keep sets what the name stands for, once it is there.
func (h *holder) keep(s state) {
	if h != nil {
		h.of.state = s
	}
}

// park lets the transfer wait for another connection.
func (h *holder) park() {
	n, r := h.of, h.of.registry
	r.mutex.Lock()
	if r.stopped {
		r.mutex.Unlock()
		h.drop()
		return
	}
	n.holder = nil
	n.parkings++
	parking := n.parkings
	n.expiry = machinetime.AfterFunc(r.wait(), func() { r.expire(n, parking) })
	r.waiting = append(r.waiting, n)
	var oldest *named
	if len(r.waiting) > maxWaiting {
		oldest = r.waiting[0]
		oldest.expiry.Stop()
		r.removeWaiting(oldest)
		delete(r.open, oldest.name)
	}
	r.mutex.Unlock()
	close(h.left)
	if oldest != nil {
		oldest.state.release()
	}
}

// drop ends the transfer. Whoever waits for it to be free finds it gone.
func (h *holder) drop() {
	if h == nil {
		return
	}
	n, r := h.of, h.of.registry
	if n.state != nil {
		n.state.release()
	}
	r.mutex.Lock()
	delete(r.open, n.name)
	r.mutex.Unlock()
	close(h.left)
}

// finish ends an upload that is in place, and remembers it.
func (h *holder) finish(size int64, checksum string) {
	if h == nil {
		return
	}
	n, r := h.of, h.of.registry
	over := &finished{name: n.name, size: size, checksum: checksum}
	r.mutex.Lock()
	delete(r.open, n.name)
	if r.finished == nil {
		r.finished = map[string]*finished{}
	}
	r.finished[n.name] = over
	r.order = append(r.order, over)
	over.expiry = machinetime.AfterFunc(r.wait(), func() { r.expireFinished(over) })
	for first := r.order[0]; r.finished[first.name] != first || len(r.order) > maxFinished; first = r.order[0] {
		r.drop(first)
		r.order = r.order[1:]
	}
	r.mutex.Unlock()
	close(h.left)
}

// forget is called when the host has the answer about a finished upload.
func (r *Registry) forget(name string) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if over, isOver := r.finished[name]; isOver {
		r.drop(over)
	}
}

// expireFinished is called when nobody has asked for the answer in time.
func (r *Registry) expireFinished(over *finished) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.drop(over)
}

// drop forgets a finished upload, if it is remembered. The mutex is held.
func (r *Registry) drop(over *finished) {
	over.expiry.Stop()
	if r.finished[over.name] == over {
		delete(r.finished, over.name)
	}
}

// expire ends a transfer that nobody came back for.
func (r *Registry) expire(n *named, parking int) {
	r.mutex.Lock()
	if n.holder != nil || n.parkings != parking || r.open[n.name] != n {
		r.mutex.Unlock()
		return
	}
	r.removeWaiting(n)
	delete(r.open, n.name)
	r.mutex.Unlock()
	n.state.release()
}

// removeWaiting takes a transfer out of those that wait. The mutex is held.
func (r *Registry) removeWaiting(n *named) {
	for i, each := range r.waiting {
		if each == n {
			r.waiting = append(r.waiting[:i:i], r.waiting[i+1:]...)
			return
		}
	}
}
