package serial

import (
	"io"
	"net"
	"testing"
)

// socketLine is a line over a Unix socket pair, such as QEMU's chardev gives.
func socketLine(b testing.TB) (net.Conn, net.Conn) {
	listener, err := net.Listen("unix", b.TempDir()+"/line")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	one, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	other, err := listener.Accept()
	if err != nil {
		b.Fatal(err)
	}
	return one, other
}

const benchPiece = 64 << 10

func pump(b *testing.B, from io.Reader, to io.Writer) {
	piece := make([]byte, benchPiece)
	b.SetBytes(benchPiece)
	b.ReportAllocs()
	b.ResetTimer()
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, benchPiece)
		for rest := b.N * benchPiece; rest > 0; {
			n, err := from.Read(buf)
			if err != nil {
				done <- err
				return
			}
			rest -= n
		}
		done <- nil
	}()
	for i := 0; i < b.N; i++ {
		if _, err := to.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func BenchmarkBareSocket(b *testing.B) {
	one, other := socketLine(b)
	defer one.Close()
	defer other.Close()
	pump(b, other, one)
}

func BenchmarkStreamOverSocket(b *testing.B) {
	one, other := socketLine(b)
	p := &pair{host: NewHost(one, Settings{}), guest: NewGuest(other, Settings{})}
	defer p.host.Close()
	defer p.guest.Close()
	host, guest := p.both(b)
	pump(b, guest, host)
	b.StopTimer()
	b.Logf("%+v", p.host.Stats())
}

func pingPong(b *testing.B, one, other io.ReadWriter) {
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := io.ReadFull(other, buf); err != nil {
				return
			}
			if _, err := other.Write(buf); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 4096)
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if _, err := one.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(one, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPingPongBareSocket(b *testing.B) {
	one, other := socketLine(b)
	defer one.Close()
	defer other.Close()
	pingPong(b, one, other)
}

func BenchmarkPingPongOverSocket(b *testing.B) {
	one, other := socketLine(b)
	p := &pair{host: NewHost(one, Settings{}), guest: NewGuest(other, Settings{})}
	defer p.host.Close()
	defer p.guest.Close()
	host, guest := p.both(b)
	pingPong(b, host, guest)
}
