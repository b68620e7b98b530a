package datalink

import "time"

const (
	minWindow = 4 << 10
	maxWindow = 1 << 20
	// windowTime is how much of the line's rate may be in flight: enough to keep an emulated guest busy between two of its turns.
	windowTime = 40 * time.Millisecond
	// rateRounds is for how many round trips a rate that was reached is remembered.
	rateRounds = 8
	// fastestTime is for how long the quickest round trip is.
	fastestTime = 10 * time.Second
)

// window decides how many bytes may be in flight, from the rate at which the line delivers and its round trip (in the
// manner of BBR: rate times time, both the best of late).
type window struct {
	bytes       int
	least, most int
	longest     time.Duration // at the line's rate
	srtt, vary  time.Duration
	rates       [rateRounds]float64 // bytes per second, the best of each of the last rounds
	round       int
	roundEnds   uint64 // the round ends when so much has been delivered
	// The quickest round trip of this period and the one before.
	fastest, fastestBefore time.Duration
	period                 time.Duration // when this one began
}

// time takes in a frame's round trip.
func (w *window) time(now, rtt time.Duration) {
	if rtt <= 0 {
		rtt = 1
	}
	if w.srtt == 0 {
		w.srtt, w.vary = rtt, rtt/2
	} else {
		off := w.srtt - rtt
		if off < 0 {
			off = -off
		}
		w.vary += (off - w.vary) / 4
		w.srtt += (rtt - w.srtt) / 8
	}
	if now-w.period > fastestTime {
		w.period, w.fastestBefore, w.fastest = now, w.fastest, 0
	}
	if w.fastest == 0 || rtt < w.fastest {
		w.fastest = rtt
	}
}

// sample takes in what was delivered between a frame's sending and its acknowledgement, and in how long; and sets the
// window anew. It is not called for frames behind which there was nothing more to send: their rate says nothing about the line.
func (w *window) sample(deliveredAtSending, delivered uint64, elapsed time.Duration) {
	if deliveredAtSending >= w.roundEnds {
		w.roundEnds = delivered
		w.round = (w.round + 1) % rateRounds
		w.rates[w.round] = 0
	}
	if elapsed > 0 {
		if rate := float64(delivered-deliveredAtSending) / elapsed.Seconds(); rate > w.rates[w.round] {
			w.rates[w.round] = rate
		}
	}
	best := 0.0
	for _, rate := range w.rates {
		if rate > best {
			best = rate
		}
	}
	fastest := w.fastest
	if w.fastestBefore > 0 && w.fastestBefore < fastest {
		fastest = w.fastestBefore
	}
	// Twice the quickest round trip: a window of one would never show that the line can do more, and on a line that is slow to
	// answer the fixed time alone would shrink the window with each round.
	lasting := 2 * fastest
	if lasting < windowTime {
		lasting = windowTime
	}
	// The window itself makes the round trip of a line that is slow to carry. When every quick one is forgotten, because none went over
	// an empty line for so long, twice the quickest would double the window again and again.
	if lasting > w.longest {
		lasting = w.longest
	}
	bytes := best * lasting.Seconds()
	switch {
	case bytes < float64(w.least):
		w.bytes = w.least
	case bytes > float64(w.most):
		w.bytes = w.most
	default:
		w.bytes = int(bytes)
	}
}

// probeAfter is how long to wait for an acknowledgement before asking for it.
func (w *window) probeAfter(least time.Duration) time.Duration {
	wait := 2*w.srtt + 4*w.vary
	if wait < least {
		return least
	}
	return wait
}

const (
	minPayload   = 128
	judgedFrames = 64
	// leastLost frames must be lost before a line is called bad, lest a single one decides.
	leastLost = 4
)

// payload decides how many bytes a frame carries, from how many frames are lost: on a line that damages one byte in 2000 no
// large one arrives.
type payload struct {
	bytes, most  int
	judged, lost int
}

func (p *payload) judge(lost bool) {
	p.judged++
	if lost {
		p.lost++
	}
	switch {
	case p.lost >= leastLost && p.lost*4 > p.judged:
		p.bytes /= 2
		if p.bytes < minPayload {
			p.bytes = minPayload
		}
		p.judged, p.lost = 0, 0
	case p.judged >= judgedFrames:
		if p.lost*20 < p.judged {
			p.bytes *= 2
			if p.bytes > p.most {
				p.bytes = p.most
			}
		}
		p.judged, p.lost = 0, 0
	}
}
