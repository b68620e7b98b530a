package transfer

import (
	"sync"
	"time"
)

const (
	// leadBytes is how far a download may be ahead of the slowest one that moves.
	leadBytes = 256 << 10
	// headStartBytes is what one that begins may catch up on those that have begun just before.
	headStartBytes = 1 << 20
	// movesWithin: a download that has sent nothing for so long waits for its host. The others do not wait for it.
	movesWithin = 250 * time.Millisecond
)

// Pace keeps downloads that run at once over one link within reach of each other, whatever their links make of them: vhost-device-vsock serves
// some connections four times as often as others when there are many, and the scheduler of a guest's only CPU adds to it. One that runs
// alone never waits. Its zero value is ready.
type Pace struct {
	mutex   sync.Mutex
	runners map[*runner]struct{}
}

// runner is a download that is being sent.
type runner struct {
	pace    *Pace
	sent    int64 // counted from where it began among the others
	movedAt time.Time
	// ahead is closed when it may go on; nil while it does not wait.
	ahead chan struct{}
}

func (p *Pace) join() *runner {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	now := time.Now()
	r := &runner{pace: p, movedAt: now}
	if slowest, any := p.slowest(now); any && slowest > headStartBytes {
		r.sent = slowest - headStartBytes
	}
	if p.runners == nil {
		p.runners = map[*runner]struct{}{}
	}
	p.runners[r] = struct{}{}
	return r
}

// crowded says whether so many run that each should take small steps.
func (r *runner) crowded() bool {
	r.pace.mutex.Lock()
	defer r.pace.mutex.Unlock()
	return len(r.pace.runners) > 4
}

// moved counts what was sent, and waits while that is too far ahead.
func (r *runner) moved(bytes int64) {
	p := r.pace
	p.mutex.Lock()
	r.sent += bytes
	r.movedAt = time.Now()
	p.wake(r.movedAt)
	for len(p.runners) > 1 && p.isAhead(r, time.Now()) {
		r.ahead = make(chan struct{})
		ahead := r.ahead
		p.mutex.Unlock()
		limit := time.NewTimer(movesWithin) // by then whoever it waits for has moved, or does not count
		select {
		case <-ahead:
		case <-limit.C:
		}
		limit.Stop()
		p.mutex.Lock()
		r.ahead = nil
	}
	// To have waited for others is not to have stood still.
	r.movedAt = time.Now()
	p.mutex.Unlock()
}

func (r *runner) leave() {
	p := r.pace
	p.mutex.Lock()
	defer p.mutex.Unlock()
	delete(p.runners, r)
	p.wake(time.Now())
}

func (p *Pace) isAhead(r *runner, now time.Time) bool {
	slowest, any := p.slowest(now)
	return any && r.sent > slowest+leadBytes
}

// slowest is the least that a moving one has sent. Those that wait here move.
func (p *Pace) slowest(now time.Time) (sent int64, any bool) {
	for r := range p.runners {
		if r.ahead == nil && now.Sub(r.movedAt) > movesWithin {
			continue
		}
		if !any || r.sent < sent {
			sent, any = r.sent, true
		}
	}
	return sent, any
}

// wake lets those go that are not ahead any more.
func (p *Pace) wake(now time.Time) {
	slowest, any := p.slowest(now)
	for r := range p.runners {
		if r.ahead != nil && (!any || r.sent <= slowest+leadBytes) {
			close(r.ahead)
			r.ahead = nil
		}
	}
}
