package transfer

import (
	"sync"
	"testing"
	"time"
)

func TestOneThatRunsAloneNeverWaits(t *testing.T) {
	var p Pace
	r := p.join()
	for i := 0; i < 100; i++ {
		r.moved(1 << 20)
	}
	r.leave()
	if len(p.runners) != 0 {
		t.Error("one that has left is still there")
	}
}

func TestNoneIsFurtherAheadThanTheLead(t *testing.T) {
	var p Pace
	const step, total, count = 64 << 10, 4 << 20, 16
	runners := make([]*runner, count)
	for i := range runners {
		runners[i] = p.join()
	}
	var running sync.WaitGroup
	for i := range runners {
		running.Add(1)
		go func(r *runner, slow bool) {
			defer running.Done()
			defer r.leave()
			for r.sent < total {
				if slow {
					time.Sleep(time.Millisecond)
				}
				r.moved(step)
				p.mutex.Lock()
				if slowest, any := p.slowest(time.Now()); any && r.sent > slowest+leadBytes+step {
					t.Errorf("%d is sent, the slowest has %d", r.sent, slowest)
				}
				p.mutex.Unlock()
			}
		}(runners[i], i%3 == 0)
	}
	running.Wait()
}

func TestNobodyWaitsForOneThatStandsStill(t *testing.T) {
	var p Pace
	still, moving := p.join(), p.join()
	for moving.sent < 8<<20 {
		moving.moved(64 << 10) // each waiting ends by its limit, and after the first there is none
	}
	if still.sent != 0 {
		t.Error("it did not stand still")
	}
	still.leave()
	moving.leave()
}

func TestOneThatBeginsLateDoesNotHoldTheOthersUp(t *testing.T) {
	var p Pace
	old := p.join()
	old.moved(1 << 30)
	late := p.join()
	if behind := old.sent - late.sent; behind != headStartBytes {
		t.Errorf("it begins %d bytes behind", behind)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		old.moved(0)
	}()
	for i := 0; i < 20; i++ {
		late.moved(64 << 10)
	}
	<-done
}
