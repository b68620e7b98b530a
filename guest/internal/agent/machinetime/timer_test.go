package machinetime

import (
	"testing"
	"time"
)

func TestATimeInWhichTheMachineStoodStillDoesNotCount(t *testing.T) {
	for _, each := range []struct{ step, took, ran time.Duration }{
		{step: time.Second, took: time.Second, ran: time.Second},
		{step: time.Second, took: 1900 * time.Millisecond, ran: 1900 * time.Millisecond}, // busy
		{step: time.Second, took: time.Hour, ran: time.Second},
		{step: 10 * time.Millisecond, took: 900 * time.Millisecond, ran: 900 * time.Millisecond},
		{step: 10 * time.Millisecond, took: 2 * time.Second, ran: 10 * time.Millisecond},
		{step: 10 * time.Second, took: 15 * time.Second, ran: 15 * time.Second},
		{step: 10 * time.Second, took: 21 * time.Second, ran: 10 * time.Second},
	} {
		if got := ran(each.step, each.took); got != each.ran {
			t.Errorf("of %v that should have taken %v, %v counted", each.took, each.step, got)
		}
	}
}

func TestAPauseCostsAStepOfAWait(t *testing.T) {
	called := make(chan struct{})
	timer := AfterFunc(16*time.Hour, func() { close(called) }) // steps of 10 s
	timer.end(longestStep, 100*time.Hour)
	timer.mutex.Lock()
	left := timer.left
	timer.mutex.Unlock()
	if left != 16*time.Hour-longestStep {
		t.Fatalf("%v are left", left)
	}
	timer.Stop()
	timer.end(longestStep, longestStep) // it was on its way
	select {
	case <-called:
		t.Fatal("it was called though it was stopped")
	default:
	}
}

func TestItIsCalledOnceInItsTime(t *testing.T) {
	began, called := time.Now(), make(chan time.Duration, 2)
	AfterFunc(50*time.Millisecond, func() { called <- time.Since(began) })
	if took := <-called; took < 50*time.Millisecond {
		t.Fatalf("it was called after %v", took)
	}
	select {
	case <-called:
		t.Fatal("it was called twice")
	case <-time.After(20 * time.Millisecond):
	}
}

func TestOneThatIsStoppedIsNotCalled(t *testing.T) {
	called := make(chan struct{}, 1)
	timer := AfterFunc(30*time.Millisecond, func() { called <- struct{}{} })
	time.Sleep(10 * time.Millisecond)
	timer.Stop()
	timer.Stop()
	select {
	case <-called:
		t.Fatal("it was called")
	case <-time.After(60 * time.Millisecond):
	}
}

func TestOneOfNoTimeIsCalledAtOnce(t *testing.T) {
	called := make(chan struct{})
	AfterFunc(0, func() { close(called) })
	<-called
}
