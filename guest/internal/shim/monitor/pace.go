package monitor

import "time"

// A VMM that is well sends a few lines in a minute; one full disk may fail as many requests as the disk has under way, 256 at most.
const (
	burstLines   = 512
	lineInterval = 10 * time.Millisecond
)

// pace slows down the reading of lines from a VMM that floods. Zero is ready for use.
type pace struct {
	// due is when all lines so far would have come at the steady rate.
	due time.Time
}

// wait returns when the next line may be read, or when nobody wants to wait any more.
func (p *pace) wait(stopping <-chan struct{}) {
	now := time.Now()
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(lineInterval)
	ahead := p.due.Sub(now) - burstLines*lineInterval
	if ahead <= 0 {
		return
	}
	select {
	case <-stopping:
		// Time is not the measure any more: the connection has a limit.
		p.due = now
	case <-time.After(ahead):
	}
}
