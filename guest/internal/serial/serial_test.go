package serial

import (
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

const testPort = 9000

// pair is both ends at work; they are closed at the test's end, and every goroutine must have ended then.
type pair struct {
	host      *Host
	guest     *Guest
	hostLine  *endOfLine
	guestLine *endOfLine
}

func newPair(t testing.TB, coding Coding, toGuest, toHost trouble, seed int64) *pair {
	t.Helper()
	before := runtime.NumGoroutine()
	hostLine, guestLine := newLine(toGuest, toHost, seed)
	report := func(err error) { t.Logf("report: %v", err) }
	p := &pair{
		host:     NewHost(hostLine, Settings{Coding: coding, Report: report}),
		guest:    NewGuest(guestLine, Settings{Coding: coding, Report: report}),
		hostLine: hostLine, guestLine: guestLine,
	}
	t.Cleanup(func() {
		p.host.Close()
		p.guest.Close()
		waitFor(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return p
}

func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("it never came that %s\n%s", what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func (p *pair) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := p.host.Dial(testPort, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (p *pair) both(t testing.TB) (host, guest net.Conn) {
	t.Helper()
	host = p.dial(t)
	guest, err := p.guest.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return host, guest
}

// noise is bytes that a seed determines.
func noise(seed int64, n int) []byte {
	p := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(p)
	return p
}

// pour writes p in pieces of random sizes.
func pour(to io.Writer, p []byte, seed int64) error {
	random := rand.New(rand.NewSource(seed))
	for len(p) > 0 {
		n := 1 + random.Intn(1<<uint(random.Intn(17)))
		if n > len(p) {
			n = len(p)
		}
		if _, err := to.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// expect reads want, in pieces of random sizes.
func expect(from io.Reader, want []byte, seed int64) error {
	random := rand.New(rand.NewSource(seed))
	buf := make([]byte, 1<<16)
	for at := 0; at < len(want); {
		n, err := from.Read(buf[:1+random.Intn(len(buf))])
		if n > len(want)-at || !bytes.Equal(buf[:n], want[at:at+n]) {
			return fmt.Errorf("other bytes behind offset %d", at)
		}
		at += n
		if err != nil && at < len(want) {
			return fmt.Errorf("at %d of %d: %w", at, len(want), err)
		}
	}
	return nil
}

// exchange sends bytes both ways over so many streams at once, and closes each from one side.
func exchange(t testing.TB, p *pair, streams, size int, seed int64) {
	t.Helper()
	var all sync.WaitGroup
	fail := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	all.Add(1)
	go func() {
		defer all.Done()
		for i := 0; i < streams; i++ {
			conn, err := p.guest.Accept()
			if err != nil {
				fail(err)
				return
			}
			all.Add(1)
			go func() {
				defer all.Done()
				fail(echoSum(conn))
			}()
		}
	}()
	for i := 0; i < streams; i++ {
		conn := p.dial(t)
		all.Add(1)
		go func(seed int64) {
			defer all.Done()
			defer conn.Close()
			want := noise(seed, 1+int(rand.New(rand.NewSource(seed)).Int31n(int32(size))))
			writing := make(chan error, 1)
			go func() { writing <- pour(conn, want, seed) }()
			fail(expect(conn, want, seed+1))
			fail(<-writing)
		}(seed + int64(i)*10)
	}
	all.Wait()
}

// echoSum gives back what comes, until the other end closes.
func echoSum(conn net.Conn) error {
	defer conn.Close()
	_, err := io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, make([]byte, 40000))
	return err
}

// seeds is how many seeds each line is tried with: more under BANDSOX_SOAK=1.
func seeds() int64 {
	if os.Getenv("BANDSOX_SOAK") == "1" {
		return 10
	}
	return 1
}

func TestBytesArriveOnceAndInOrder(t *testing.T) {
	lines := map[string]trouble{
		"a good line":          {},
		"pieces of any size":   {chop: true},
		"one byte in 2000 bad": {damage: 1.0 / 2000, drop: 0.03, repeat: 0.01, chop: true},
		"one byte in 500 bad":  {damage: 1.0 / 500},
		"writes lost":          {drop: 0.1},
		"holes":                {hole: 0.1},
		"writes come twice":    {repeat: 0.2},
		"slow to answer":       {delay: 15 * time.Millisecond},
		"a small line":         {capacity: 1},
		"everything at a time": {damage: 1.0 / 5000, drop: 0.02, hole: 0.02, repeat: 0.02, delay: 2 * time.Millisecond, chop: true},
	}
	for name, line := range lines {
		line := line
		for _, coding := range []Coding{Raw, Text} {
			t.Run(fmt.Sprintf("%s %d", name, coding), func(t *testing.T) {
				size := 1 << 20
				if coding == Text || line.damage > 1.0/1000 {
					size = 64 << 10
				}
				if coding == Text && line.damage > 1.0/1000 {
					size = 4 << 10 // half of the smallest frames are lost, and a UART's timers are slow
				}
				for seed := int64(1); seed <= seeds(); seed++ {
					p := newPair(t, coding, line, line, seed)
					exchange(t, p, 5, size, 7*seed)
					t.Logf("%+v", p.host.Stats())
					p.host.Close()
					p.guest.Close()
				}
			})
		}
	}
}
