package transfer

import (
	"encoding/json"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bandsox.dev/guest/internal/wire"
)

// fakeState says who uses it, and whether it was released.
type fakeState struct {
	users, releases int32
}

func (f *fakeState) release() { atomic.AddInt32(&f.releases, 1) }

func request(name string, offset string) wire.Message {
	return wire.Message{Type: "upload", Fields: map[string]json.RawMessage{"transfer": json.RawMessage(`"` + name + `"`), "offset": json.RawMessage(offset)}}
}

func TestATransferHasOneUserAndIsReleasedOnce(t *testing.T) {
	registry := &Registry{Wait: time.Millisecond}
	var states sync.Map
	var done sync.WaitGroup
	for worker := 0; worker < 8; worker++ {
		done.Add(1)
		go func(random *rand.Rand) {
			defer done.Done()
			for i := 0; i < 300; i++ {
				hungUp := make(chan struct{})
				var once sync.Once
				held, over, err := registry.take("upload", request([]string{"a", "b"}[random.Intn(2)], "0"), func() { once.Do(func() { close(hungUp) }) })
				if err != nil {
					t.Error(err)
					return
				}
				if over != nil {
					registry.forget("a")
					registry.forget("b")
					continue
				}
				if held.of.state == nil {
					state := &fakeState{}
					states.Store(state, true)
					held.keep(state)
				}
				state := held.of.state.(*fakeState)
				if atomic.AddInt32(&state.users, 1) != 1 || atomic.LoadInt32(&state.releases) != 0 {
					t.Error("a transfer is used by two, or after its release")
				}
				if random.Intn(2) == 0 {
					select {
					case <-hungUp:
					case <-time.After(time.Duration(random.Intn(3)) * time.Millisecond):
					}
				}
				atomic.AddInt32(&state.users, -1)
				switch random.Intn(4) {
				case 0:
					held.drop()
				case 1:
					state.release() // in place: there is nothing more to release
					held.finish(1, "00000000")
				default:
					held.park()
				}
			}
		}(rand.New(rand.NewSource(int64(worker))))
	}
	done.Wait()
	registry.Stop()
	if len(registry.open) != 0 || len(registry.waiting) != 0 {
		t.Fatalf("%d and %d are left", len(registry.open), len(registry.waiting))
	}
	states.Range(func(state, _ interface{}) bool {
		// The timer of one that expired just now may still be at it.
		for deadline := time.Now().Add(10 * time.Second); atomic.LoadInt32(&state.(*fakeState).releases) != 1; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("released %d times", state.(*fakeState).releases)
			}
		}
		return true
	})
}

func TestWhoComesWhileAnUploadIsPutInPlaceHearsOfItsEnd(t *testing.T) {
	registry := &Registry{}
	closed := make(chan struct{})
	first, _, err := registry.take("upload", request("a", "0"), func() { close(closed) })
	if err != nil {
		t.Fatal(err)
	}
	first.keep(&fakeState{})
	told := make(chan *finished, 1)
	go func() {
		_, over, err := registry.take("upload", request("a", "5"), func() {})
		if err != nil {
			t.Error(err)
		}
		told <- over
	}()
	<-closed // its connection; it itself is in a sync
	first.finish(7, "01234567")
	if over := <-told; over == nil || over.size != 7 || over.checksum != "01234567" {
		t.Fatalf("%+v", over)
	}
}

func TestOnlySoManyFinishedUploadsAreRemembered(t *testing.T) {
	registry := &Registry{}
	finish := func(name string) {
		held, _, err := registry.take("upload", request(name, "0"), func() {})
		if err != nil {
			t.Fatal(err)
		}
		held.finish(1, "00000000")
	}
	name := func(i int) string {
		return string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
	}
	for i := 0; i < maxFinished+2; i++ {
		finish(name(i))
	}
	if _, known := registry.finished[name(1)]; known || len(registry.finished) != maxFinished {
		t.Fatalf("%d are remembered", len(registry.finished))
	}
	registry.Wait = time.Nanosecond
	finish("last")
	time.Sleep(time.Millisecond)
	if _, over, err := registry.take("upload", request("last", "1"), func() {}); over != nil || err == nil {
		t.Fatal("remembered for ever")
	}
}
