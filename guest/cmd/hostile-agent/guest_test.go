package main

import (
	"errors"
	"net"
	"testing"
	"time"

	"bandsox.dev/guest/internal/wire"
)

// meet lets a guest misbehave in a mode, and gives the host's end behind the answer to its hello.
func meet(t *testing.T, mode string) (net.Conn, *wire.Decoder) {
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	go func() {
		defer theirs.Close()
		(&guest{conn: theirs}).serve(mode)
	}()
	if err := ours.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	say(t, ours, object{"type": "hello", "protocol": 1, "minProtocol": 1})
	return ours, wire.NewDecoder(ours, wire.ToHost)
}

func say(t *testing.T, conn net.Conn, message object) {
	t.Helper()
	if _, err := conn.Write(encode(message)); err != nil {
		t.Fatal(err)
	}
}

// what is seen of these modes by a host that only decodes.
var seen = map[string]string{
	"garbage": wire.FrameKindUnknown, "huge": wire.FrameTooLarge, "empty": wire.FrameEmpty, "deep": wire.MessageTooDeep,
	"not-utf8": wire.MessageNotUTF8, "cut": wire.FrameTruncated,
}

func expectViolation(t *testing.T, mode, name string, err error) {
	t.Helper()
	var violation *wire.Violation
	if !errors.As(err, &violation) || violation.Name != name {
		t.Errorf("%s: %v, %s was meant", mode, err, name)
	}
}

func TestModesOfPortsBreakTheHello(t *testing.T) {
	for mode, name := range seen {
		_, decoder := meet(t, mode)
		_, err := decoder.Next()
		expectViolation(t, mode, name, err)
	}
}

func TestModesOfPathsBreakAnOperation(t *testing.T) {
	for mode, name := range seen {
		conn, decoder := meet(t, byPath)
		if frame, err := decoder.Next(); err != nil || frame.Message.Type != "hello" {
			t.Fatal(mode, err)
		}
		say(t, conn, object{"type": "stat", "path": "/hostile/" + mode})
		_, err := decoder.Next()
		expectViolation(t, mode, name, err)
	}
}

func TestFloodsDoNotEnd(t *testing.T) {
	for mode, operation := range map[string]string{
		"flood-pong": "stat", "flood-stdout": "exec", "flood-stderr": "exec", "flood-entries": "list", "flood-data": "download",
	} {
		conn, decoder := meet(t, byPath)
		if _, err := decoder.Next(); err != nil {
			t.Fatal(mode, err)
		}
		path := "/hostile/" + mode
		say(t, conn, object{"type": operation, "path": path, "argv": []string{path}, "checksum": "xxh64"})
		for i := 0; i < 20; i++ {
			if _, err := decoder.Next(); err != nil {
				t.Fatalf("%s: frame %d: %v", mode, i, err)
			}
		}
	}
}

func TestEveryModeOfAPortIsKnown(t *testing.T) {
	for _, mode := range byPort {
		if mode == byPath || mode == able {
			continue
		}
		if _, known := onHello[mode]; !known {
			t.Errorf("no mode %s", mode)
		}
	}
}
