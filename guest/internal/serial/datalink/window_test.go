package datalink

import (
	"testing"
	"time"
)

// settle fills a line of so many bytes per second, and so long a way there and back, with what a window allows, and tells what the window
// and its round trips come to. Nothing waits: the time is counted.
func settle(p pace, rate float64, way, duration time.Duration) (w window, delivered uint64, longest time.Duration) {
	type flight struct {
		length             int
		at, arrives, since time.Duration
		delivered          uint64
	}
	w = window{bytes: p.window, least: minWindow, most: p.mostWindow, longest: p.queue}
	var flights []flight
	var now, free, deliveredAt time.Duration
	flying := 0
	for now < duration {
		for length := smaller(p.payload, w.bytes/4); flying == 0 || flying+length <= w.bytes; {
			if free < now {
				free = now
			}
			free += time.Duration(float64(length) / rate * float64(time.Second))
			flights = append(flights, flight{length, now, free + way, deliveredAt, delivered})
			flying += length
		}
		f := flights[0]
		flights = flights[1:]
		now = f.arrives
		flying -= f.length
		delivered += uint64(f.length)
		w.time(now, now-f.at)
		w.sample(f.delivered, delivered, now-f.since)
		deliveredAt = now
		if rtt := now - f.at; now > duration/2 && rtt > longest {
			longest = rtt
		}
	}
	return w, delivered, longest
}

func smaller(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func TestAWindowFillsItsLineAndIsNoQueueOfManySeconds(t *testing.T) {
	const duration = 2 * time.Minute
	for _, line := range []struct {
		name    string
		pace    pace
		rate    float64
		way     time.Duration
		longest time.Duration
	}{
		// minWindow and the frame above it take so long at 2 KB/s.
		{"a UART of 2 KB/s", uartPace, 2e3, 50 * time.Millisecond, 2500 * time.Millisecond},
		{"a UART of 7 KB/s", uartPace, 7e3, 50 * time.Millisecond, 1500 * time.Millisecond},
		{"a UART of 120 KB/s", uartPace, 120e3, 25 * time.Millisecond, time.Second},
		{"a UART of 30 KB/s that is late to answer", uartPace, 30e3, 700 * time.Millisecond, 2 * time.Second},
		{"a port of 16 MB/s", portPace, 16e6, 10 * time.Millisecond, time.Second},
	} {
		t.Run(line.name, func(t *testing.T) {
			w, delivered, longest := settle(line.pace, line.rate, line.way, duration)
			if got := float64(delivered) / duration.Seconds(); got < 0.8*line.rate {
				t.Errorf("it carries %.0f of %.0f bytes per second, with a window of %d", got, line.rate, w.bytes)
			}
			if longest > line.longest {
				t.Errorf("a round trip takes %v, with a window of %d", longest, w.bytes)
			}
		})
	}
}

func TestProbesWaitForAnAnswerThatTakesLong(t *testing.T) {
	var s sender
	s.reset(uartPace, 0)
	for now := time.Second; now < 20*time.Second; now += time.Second {
		s.window.time(now, 2*time.Second)
	}
	for s.probes = 0; s.probes < 8; s.probes++ {
		if wait := s.probeAt(uartPace.probe) - s.lastSent; wait < 4*time.Second || wait > longestProbe {
			t.Errorf("probe %d after %v, with answers after 2 s", s.probes, wait)
		}
	}
	s.reset(uartPace, 0)
	s.window.time(time.Second, 30*time.Millisecond)
	s.probes = 8
	if wait := s.probeAt(uartPace.probe); wait != mostProbe {
		t.Errorf("on a quick line the wait grows to %v", wait)
	}
}
