package datalink

import "time"

// clock counts running time: it stands still while the machine does, so that nothing is late afterwards.
type clock struct {
	began  time.Time
	held   bool
	heldAt time.Time
}

func (c *clock) now() time.Duration {
	if c.held {
		return c.heldAt.Sub(c.began)
	}
	return time.Since(c.began)
}

func (c *clock) hold() {
	if !c.held {
		c.held, c.heldAt = true, time.Now()
	}
}

func (c *clock) resume() {
	if c.held {
		c.began = c.began.Add(time.Since(c.heldAt))
		c.held = false
	}
}

// Hold stops the timers, while the machine stands still.
func (l *Link) Hold() {
	l.Lock()
	defer l.Unlock()
	l.clock.hold()
	l.timer.Stop()
	l.timerAt = 0
}

// Resume sets them going again, and asks at once for what is outstanding.
func (l *Link) Resume() {
	l.Lock()
	defer l.Unlock()
	if !l.clock.held || l.err != nil {
		return
	}
	l.clock.resume()
	l.sender.probeDue = l.session.up && l.sender.outstanding()
	l.Kick()
	l.arm(l.clock.now() + l.pace.probe)
}

// arm sees to it that tick is called at a time, or before. tick itself finds out what is due, so that nothing has to be
// set anew with every frame.
func (l *Link) arm(at time.Duration) {
	if l.clock.held || l.err != nil || l.timerAt != 0 && l.timerAt <= at {
		return
	}
	l.timerAt = at
	l.timer.Reset(at - l.clock.now())
}

// armNudge sees to it that a guest does not stay silent together with its line.
func (l *Link) armNudge() {
	if l.settings.Guest && l.session.up && l.pace.nudge > 0 {
		l.arm(l.nudgeAt())
	}
}

func (l *Link) nudgeAt() time.Duration {
	wait := l.pace.nudge
	for n := l.nudges; n > 0 && wait < lastNudge; n-- {
		wait *= 2
	}
	return l.nudgedAt + wait
}

// nudge says again what was received. Firecracker's UART (vm-superio) forgets that it has more as soon as one byte of it is read, and Linux
// reads 256 in one interrupt at most: with the rest in the UART no interrupt is to come, and as long as it is there nothing is read from the
// host either. Only when the guest sends something is it looked at again.
func (l *Link) nudge(now time.Duration) {
	if !l.settings.Guest || !l.session.up || l.pace.nudge == 0 {
		return
	}
	if l.nudgeAt() <= now {
		l.nudges++
		l.nudgedAt = now
		l.receiver.due = true
		l.Kick()
	}
	l.arm(l.nudgeAt())
}

// tick does what is due, and arms itself for what comes next.
func (l *Link) tick() {
	l.Lock()
	defer l.unlock()
	if l.clock.held || l.err != nil {
		return
	}
	l.timerAt = 0
	now := l.clock.now()
	if l.decoder.Partial() {
		if at := l.lastByte + l.pace.quiet; at > now {
			l.arm(at)
		} else {
			l.decoder.GiveUp()
			l.lastByte = now
			l.decode()
		}
	}
	l.session.tick(l, now)
	l.nudge(now)
	if !l.session.up || !l.sender.outstanding() {
		return
	}
	if at := l.sender.progress + silence; !l.settings.Guest && at <= now {
		l.report(ErrSilent)
		l.restart(ErrSilent)
		return
	}
	switch at := l.sender.probeAt(l.pace.probe); {
	case l.writing: // it is the line that does not take bytes
		l.arm(now + l.pace.probe)
	case at > now:
		l.arm(at)
	default:
		l.sender.probeDue = true
		l.sender.probes++
		l.Kick()
		l.arm(now + l.pace.probe)
	}
}
