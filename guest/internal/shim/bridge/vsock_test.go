package bridge

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"bandsox.dev/guest/internal/vsock"
)

// TestRealVsock is a round over the kernel's loopback, where it has one (module vsock_loopback).
func TestRealVsock(t *testing.T) {
	const local, port = 1, 9000 // VMADDR_CID_LOCAL
	listener, err := vsock.Listen(port)
	if err != nil {
		t.Skipf("needs vsock in the kernel: %v", err)
	}
	defer listener.Close()
	if probe, err := vsock.Dial(local, port); err != nil {
		t.Skipf("needs the module vsock_loopback: %v", err)
	} else if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	if probed, err := listener.Accept(); err != nil || probed.Close() != nil {
		t.Fatal("the probing connection is not to be had", err)
	}
	path := filepath.Join(t.TempDir(), "vsock.sock")
	dial := func(port uint32) (Conn, error) { return vsock.Dial(local, port) }
	bridge, err := Listen(path, Settings{Dial: dial, Gate: &Gate{}, Report: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer bridge.Close()

	answer := bytes.Repeat([]byte("0123456789"), 100000)
	go func() {
		inside, err := listener.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		question := make([]byte, 5)
		_, err = io.ReadFull(inside, question)
		if err == nil {
			_, err = inside.Write(answer)
		}
		if err != nil || inside.Close() != nil {
			t.Errorf("the guest's side: %v", err)
		}
	}()
	host, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := host.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Write([]byte("CONNECT 9000\nhello")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // by now the guest has written what fits, or all, and closed
	if got, err := io.ReadAll(host); err != nil || string(got) != "OK 1073741824\n"+string(answer) {
		t.Errorf("the host has %d bytes, %v", len(got), err)
	}

	refused, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	if err := refused.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := refused.Write([]byte("CONNECT 9001\n")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(refused); err != nil || len(got) != 0 {
		t.Errorf("a port without a listener: %q, %v", got, err)
	}
}
