package serial

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	p := newPair(t, Raw, trouble{drop: 0.1}, trouble{drop: 0.1}, 3)
	host, guest := p.both(t)
	want := noise(1, 100000)
	go func() {
		pour(guest, want, 2)
		guest.Close()
	}()
	got, err := io.ReadAll(host)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if _, err := host.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Fatalf("a write to a closed stream gives %v", err)
	}
	host.Close()
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("a read of a stream that was closed here gives %v", err)
	}
	waitFor(t, "no stream is open", func() bool { return p.host.Stats().StreamsOpen == 0 })
}

func TestDeadlinesEndReadsAndWrites(t *testing.T) {
	p := newPair(t, Raw, trouble{}, trouble{}, 3)
	host, guest := p.both(t)
	host.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
	host.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	n, err := host.Write(make([]byte, 1<<20)) // nobody reads
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 || n == 1<<20 {
		t.Fatalf("write: %d, %v", n, err)
	}
	host.SetDeadline(time.Time{})
	go guest.Write([]byte("later"))
	if err := expect(host, []byte("later"), 1); err != nil {
		t.Fatal(err)
	}
	if err := expect(guest, make([]byte, n), 1); err != nil {
		t.Fatal(err)
	}
}

func TestAStalledReaderBlocksOnlyItsOwnStream(t *testing.T) {
	p := newPair(t, Raw, trouble{}, trouble{}, 3)
	stalled, _ := p.both(t)
	var sent atomic.Int64
	ended := make(chan error, 1)
	go func() {
		for {
			n, err := stalled.Write(make([]byte, 10000))
			sent.Add(int64(n))
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	exchange(t, p, 3, 1<<20, 5)
	if n := sent.Load(); n > 256<<10 {
		t.Errorf("%d bytes were taken for a reader that does not read", n)
	}
	stalled.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestTurnsAreFair has streams send at once, some of them opened later: when the first has sent its share, no one may be far
// behind.
func TestTurnsAreFair(t *testing.T) {
	for _, streams := range []int{16, 64} {
		// The line is what everybody waits for, so that the turns are the multiplexer's, and not those of a busy host's scheduler.
		p := newPair(t, Raw, trouble{}, trouble{pace: time.Millisecond}, 3)
		const share = 1 << 20
		got := make([]atomic.Int64, streams)
		first := make(chan struct{})
		var once sync.Once
		var counting atomic.Bool // all of them are there
		var all sync.WaitGroup
		for i := 0; i < streams; i++ {
			host, guest := p.both(t)
			all.Add(2)
			go func() {
				defer all.Done()
				for {
					if _, err := guest.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			}()
			go func(i int) {
				defer all.Done()
				buf := make([]byte, 64<<10)
				for {
					n, err := host.Read(buf)
					if err != nil {
						return
					}
					if counting.Load() && got[i].Add(int64(n)) >= share {
						once.Do(func() { close(first) })
					}
				}
			}(i)
			if i == streams/2 { // the others come when these are at full speed
				received := p.host.Stats().BytesReceived
				waitFor(t, "bytes flow", func() bool { return p.host.Stats().BytesReceived > received+share })
			}
			defer host.Close()
			defer guest.Close()
		}
		counting.Store(true)
		<-first
		least, most := int64(1<<60), int64(0)
		for i := range got {
			n := got[i].Load()
			if n < least {
				least = n
			}
			if n > most {
				most = n
			}
		}
		t.Logf("%d streams: %d to %d bytes", streams, least, most)
		if 2*most > 3*least {
			t.Errorf("%d streams: one has %d bytes, another %d", streams, most, least)
		}
		p.host.Close()
		p.guest.Close()
		all.Wait()
	}
}

func TestDialIsRefusedByName(t *testing.T) {
	hostLine, guestLine := newLine(trouble{}, trouble{}, 1)
	host := NewHost(hostLine, Settings{})
	defer host.Close()
	if _, err := host.Dial(1, 30*time.Millisecond); !errors.Is(err, ErrNoSession) {
		t.Fatalf("without a guest: %v", err)
	}
	guest := NewGuest(guestLine, Settings{AcceptPort: func(port uint32) bool { return port == testPort }})
	defer guest.Close()
	if _, err := host.Dial(1, 10*time.Second); !errors.Is(err, ErrRefused) {
		t.Fatalf("a port that is not served: %v", err)
	}
	for i := 0; i < 128; i++ {
		if _, err := host.Dial(testPort, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := host.Dial(testPort, 10*time.Second); !errors.Is(err, ErrTooManyStreams) {
		t.Fatalf("the 129th: %v", err)
	}
}

// TestANewHostTakesTheLineOver is the shim's end: bytes on their way are lost, the guest's line stays.
func TestANewHostTakesTheLineOver(t *testing.T) {
	p := newPair(t, Raw, trouble{}, trouble{}, 1)
	for i := 0; i < 5; i++ {
		host, guest := p.both(t)
		go pour(guest, noise(1, 1<<20), 1)
		go pour(host, noise(2, 1<<20), 2)
		expect(host, noise(1, 1<<20)[:100000], 1)
		// What the old host has half written stays in the line; what was on its way to it is lost.
		down, up := p.guestLine.in, p.hostLine.in
		p.hostLine.detach()
		p.hostLine = &endOfLine{Reader: up, out: down, in: up}
		up.lose()
		p.host = NewHost(p.hostLine, Settings{})
		exchange(t, p, 3, 100000, 9)
		if _, err := guest.Read(make([]byte, 1<<20)); err == nil {
			t.Error("the old stream goes on")
		}
	}
}

func TestHoldKeepsASessionOverAPause(t *testing.T) {
	p := newPair(t, Raw, trouble{}, trouble{}, 1)
	host, guest := p.both(t)
	p.host.Hold()
	sent := p.host.Stats().FramesSent
	go host.Write([]byte("while it stands"))
	time.Sleep(50 * time.Millisecond)
	if n := p.host.Stats().FramesSent - sent; n > 1 {
		t.Errorf("%d frames were sent while the machine stood still", n)
	}
	p.host.Resume()
	if err := expect(guest, []byte("while it stands"), 1); err != nil {
		t.Fatal(err)
	}
}

func TestTextOfTheConsoleStaysWhole(t *testing.T) {
	hostLine, guestLine := newLine(trouble{text: 0.02, chop: true}, trouble{text: 0.02, chop: true}, 4)
	var text []byte
	splitter := NewSplitter(func(p []byte) { text = append(text, p...) })
	tapped := make(chan struct{})
	go func() {
		defer close(tapped)
		io.Copy(splitter, struct{ io.Reader }{hostLine.in})
		splitter.Close()
	}()
	p := &pair{
		host:  NewHost(&endOfLine{Reader: splitter, out: hostLine.out, in: hostLine.in}, Settings{Coding: Text}),
		guest: NewGuest(guestLine, Settings{Coding: Text}),
	}
	exchange(t, p, 3, 50000, 1)
	p.host.Close()
	p.guest.Close()
	<-tapped
	if !bytes.Equal(text, hostLine.in.text) {
		t.Fatalf("%d bytes of text, %d were printed", len(text), len(hostLine.in.text))
	}
	if s := p.host.Stats(); s.FramesDamaged+s.FramesResent > 0 {
		t.Errorf("text damaged frames: %+v", s)
	}
}

// TestAStreamThatComesWhenAllCreditIsGivenStillCarries lets 32 streams have all the memory that there is for readers; one more works as well.
func TestAStreamThatComesWhenAllCreditIsGivenStillCarries(t *testing.T) {
	p := newPair(t, Raw, trouble{}, trouble{}, 3)
	const each = 2 << 20
	want := noise(9, each)
	carry := func() {
		host, guest := p.both(t)
		done := make(chan error, 1)
		go func() { done <- pour(guest, want, 4) }()
		if err := expect(host, want, 5); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < 34; i++ {
		carry() // and stays open
	}
}
