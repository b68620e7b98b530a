package handshake

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestTheHandshakeLeavesWhatFollowsToTheProtocol(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.sock")
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dial := func(line string) net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	dial("") // says nothing, and holds nobody up
	for _, line := range []string{"HELLO 1\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT 1 and much more than thirty-two bytes\n"} {
		if n, err := dial(line).Read(make([]byte, 1)); err == nil {
			t.Fatalf("%q was answered with %d bytes", line, n)
		}
	}
	dial("CONNECT 9003\nbehind it")
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 9)
	if _, err := io.ReadFull(accepted, data); err != nil || string(data) != "behind it" || accepted.(Conn).Port != 9003 {
		t.Fatalf("%q, %v, port %d", data, err, accepted.(Conn).Port)
	}
}
