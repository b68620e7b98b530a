package control

import "sync"

// maxQueuedBytes is what a client may leave unread, beyond what its socket holds, before it is dropped.
const maxQueuedBytes = 256 << 10

// outbox is the bounded queue of bytes to one client. Nobody who puts something in ever waits for the client.
type outbox struct {
	mu      sync.Mutex
	changed *sync.Cond
	queued  []byte
	// seeded is how much of queued came by Seed, which the client asked for and which does not count.
	seeded int
	closed bool
	// full is called, once, when something did not fit.
	full func()
}

func newOutbox(full func()) *outbox {
	box := &outbox{full: full}
	box.changed = sync.NewCond(&box.mu)
	return box
}

// Seed puts data in without counting it against the bound.
func (o *outbox) Seed(data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queued = append(o.queued, data...)
	o.seeded += len(data)
	o.changed.Signal()
}

// Offer puts a copy of data in; false when the box is closed, or full, which closes it.
func (o *outbox) Offer(data []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	if len(o.queued)-o.seeded+len(data) > maxQueuedBytes {
		o.closed = true
		o.queued = nil
		o.changed.Signal()
		o.full()
		return false
	}
	o.queued = append(o.queued, data...)
	o.changed.Signal()
	return true
}

// close lets the taker have what is queued and then end.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.changed.Signal()
}

// take waits for data and takes all of it; false when the box is closed and empty.
func (o *outbox) take() ([]byte, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queued) == 0 && !o.closed {
		o.changed.Wait()
	}
	data := o.queued
	o.queued, o.seeded = nil, 0
	return data, len(data) > 0
}
