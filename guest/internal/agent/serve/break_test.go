package serve

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/wire"
)

// The tests of this file break connections at random bytes, in both directions, and come back until the operation is done.

// breakingConn ends after so many bytes of each direction, in the middle of a frame or of a header.
type breakingConn struct {
	net.Conn
	toRead, toWrite int
	abandoned       bool // it is left open in place of being closed, as after a crash of what lies between
}

var errBroken = errors.New("the connection is broken")

func (c *breakingConn) end() error {
	if !c.abandoned {
		c.Conn.Close()
	}
	return errBroken
}

func (c *breakingConn) Read(p []byte) (int, error) {
	if c.toRead == 0 {
		return 0, c.end()
	}
	if len(p) > c.toRead {
		p = p[:c.toRead]
	}
	n, err := c.Conn.Read(p)
	c.toRead -= n
	return n, err
}

func (c *breakingConn) Write(p []byte) (int, error) {
	if len(p) <= c.toWrite {
		c.toWrite -= len(p)
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:c.toWrite])
	c.toWrite = 0
	if err != nil {
		return n, err
	}
	return n, c.end()
}

// flaky dials connections that break, and at last one that does not.
type flaky struct {
	t        *testing.T
	path     string
	random   *rand.Rand
	attempts int
	most     int // bytes until a break
}

const unbroken = 1 << 30

// link is a host's side whose errors are no test's failure.
type link struct {
	conn    net.Conn
	decoder *wire.Decoder
}

func (f *flaky) dial() (*link, error) {
	conn, err := net.Dial("unix", f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		f.t.Fatal(err)
	}
	breaking := &breakingConn{Conn: conn, toRead: unbroken, toWrite: unbroken, abandoned: f.random.Intn(3) == 0}
	if f.attempts++; f.attempts < 40 {
		limit := 1 + f.random.Intn(f.most)
		if f.random.Intn(4) == 0 {
			limit = 1 + f.random.Intn(400) // in the hello, or in the first answer
		}
		if f.random.Intn(2) == 0 {
			breaking.toRead = limit
		} else {
			breaking.toWrite = limit
		}
	}
	l := &link{breaking, wire.NewDecoder(breaking, wire.ToHost)}
	if err := l.send(object{"type": "hello", "protocol": 1, "minProtocol": 1}); err != nil {
		return nil, err
	}
	_, err = l.message("hello")
	return l, err
}

// again tries until an attempt is done. Only a break is a reason for another one.
func (f *flaky) again(attempt func(l *link) error) {
	f.t.Helper()
	for {
		l, err := f.dial()
		if err == nil {
			err = attempt(l)
		}
		if err == nil {
			return
		}
		if f.attempts > 100 {
			f.t.Fatalf("no end after %d attempts: %v", f.attempts, err)
		}
		// An `exec` of an earlier attempt that is read late takes the command over from a later one, whose connection ends; its
		// own is dead, so that the next attempt wins.
		ended := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		if !errors.Is(err, errBroken) && !ended && !strings.Contains(err.Error(), "the stream ended inside a frame") {
			f.t.Fatalf("attempt %d: %v", f.attempts, err)
		}
	}
}

func (l *link) send(message object) error {
	frame, err := wire.AppendMessage(nil, message)
	if err != nil {
		return err
	}
	_, err = l.conn.Write(frame)
	return err
}

func (l *link) sendData(data []byte) error {
	frame := append(make([]byte, wire.HeaderBytes), data...)
	wire.PutHeader(frame, wire.KindData, len(data))
	_, err := l.conn.Write(frame)
	return err
}

func (l *link) message(kind string) (wire.Message, error) {
	frame, err := l.decoder.Next()
	if err == nil && frame.Message.Type != kind {
		err = fmt.Errorf("kind %d, message %s, %s was meant", frame.Kind, show(frame.Message), kind)
	}
	return frame.Message, err
}

func TestUploadsSurviveBreaksAtAnyByte(t *testing.T) {
	_, path := newServer(t)
	for seed := int64(1); seed <= 25; seed++ {
		f := &flaky{t: t, path: path, random: rand.New(rand.NewSource(seed)), most: 1500000}
		folder := t.TempDir()
		data := make([]byte, f.random.Intn(3000000))
		f.random.Read(data)
		name := fmt.Sprintf("upload-number-%04d", seed)
		acked := int64(0)
		f.again(func(l *link) error {
			if err := l.send(object{"type": "upload", "path": folder + "/file", "checksum": "xxh64", "transfer": name, "offset": acked}); err != nil {
				return err
			}
			ready, err := l.message("ready")
			if err != nil {
				return err
			}
			offset := ready.Integer("offset", -1)
			if offset < acked || offset > int64(len(data)) {
				return fmt.Errorf("ready at %d after %d", offset, acked)
			}
			acked = offset
			for rest := data[offset:]; len(rest) > 0; {
				size := 1 + f.random.Intn(65536)
				if size > len(rest) {
					size = len(rest)
				}
				if err := l.sendData(rest[:size]); err != nil {
					return err
				}
				rest = rest[size:]
			}
			if err := l.send(object{"type": "complete", "size": len(data), "checksum": xxh64(data)}); err != nil {
				return err
			}
			for {
				frame, err := l.decoder.Next()
				switch {
				case err != nil:
					return err
				case frame.Message.Type == "complete" && frame.Message.Text("checksum") == xxh64(data):
					return nil
				case frame.Message.Type != "ack":
					return errors.New(show(frame.Message))
				}
				acked = frame.Message.Integer("offset", 0)
			}
		})
		expectContent(t, folder+"/file", data)
		expectOnly(t, folder, "file")
	}
}

func TestDownloadsSurviveBreaksAtAnyByte(t *testing.T) {
	_, path := newServer(t)
	for seed := int64(1); seed <= 25; seed++ {
		f := &flaky{t: t, path: path, random: rand.New(rand.NewSource(seed)), most: 1500000}
		data := make([]byte, f.random.Intn(6000000))
		f.random.Read(data)
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("download-number-%04d", seed)
		var received []byte
		f.again(func(l *link) error {
			// What came may be forgotten again, as by a host that has not written all of it.
			received = received[:len(received)-f.random.Intn(1+len(received)/10)]
			if err := l.send(object{"type": "download", "path": file, "checksum": "xxh64", "transfer": name, "offset": len(received)}); err != nil {
				return err
			}
			ready, err := l.message("ready")
			if err != nil {
				return err
			}
			if ready.Integer("offset", -1) != int64(len(received)) || ready.Integer("size", -1) != int64(len(data)) {
				return fmt.Errorf("%s at %d of %d", show(ready), len(received), len(data))
			}
			for acked := len(received); ; {
				frame, err := l.decoder.Next()
				if err != nil {
					return err
				}
				if frame.Kind == wire.KindMessage {
					if frame.Message.Type != "complete" || frame.Message.Text("checksum") != xxh64(data) {
						return errors.New(show(frame.Message))
					}
					break
				}
				received = append(received, frame.Payload...)
				if len(received)-acked > 500000 {
					acked = len(received)
					if err := l.send(object{"type": "ack", "offset": acked}); err != nil {
						return err
					}
				}
			}
			if err := l.send(object{"type": "complete", "size": len(received), "checksum": xxh64(received)}); err != nil {
				return err
			}
			if err := l.send(object{"type": "ping"}); err != nil {
				return err
			}
			_, err = l.message("pong")
			if errors.Is(err, errBroken) {
				return nil // the host needs no answer to its `complete`
			}
			return err
		})
		if !bytes.Equal(received, data) {
			t.Fatalf("seed %d: other bytes came", seed)
		}
	}
}

// remote is a command that a host follows through breaks.
type remote struct {
	message        object
	input          []byte
	waitFor        string // the output behind which input may be sent
	stdout, stderr []byte
	started        bool
	inputAcked     int64
	exit           wire.Message
}

// follow is one attempt.
func (r *remote) follow(l *link, random *rand.Rand) error {
	var inputSent int64
	if r.started {
		if err := l.send(object{"type": "attach", "job": r.message["job"], "offset": len(r.stdout) + len(r.stderr)}); err != nil {
			return err
		}
		attached, err := l.message("attached")
		if err != nil {
			return err
		}
		inputSent = attached.Integer("inputOffset", -1)
		if inputSent < r.inputAcked || attached.Integer("offset", -1) != int64(len(r.stdout)+len(r.stderr)) {
			return fmt.Errorf("%s, with %d of the input acknowledged", show(attached), r.inputAcked)
		}
	} else if err := l.send(r.message); err != nil {
		return err
	}
	eof := r.message["stdin"] != true
	acked := len(r.stdout) + len(r.stderr)
	for {
		mayType := bytes.Contains(r.stdout, []byte(r.waitFor))
		size := int64(1 + random.Intn(40000))
		if left := int64(len(r.input)) - inputSent; size > left {
			size = left
		}
		switch {
		case mayType && size > 0 && inputSent+size-r.inputAcked <= 262144:
			if err := l.sendData(r.input[inputSent : inputSent+size]); err != nil {
				return err
			}
			inputSent += size
			continue
		case mayType && size == 0 && !eof:
			if err := l.send(object{"type": "eof"}); err != nil {
				return err
			}
			eof = true
			continue
		}
		frame, err := l.decoder.Next()
		switch {
		case err != nil:
			return err
		case frame.Kind == wire.KindStdout:
			r.stdout = append(r.stdout, frame.Payload...)
		case frame.Kind == wire.KindStderr:
			r.stderr = append(r.stderr, frame.Payload...)
		case frame.Message.Type == "started" && !r.started:
			r.started = true
		case frame.Message.Type == "ack":
			offset := frame.Message.Integer("offset", 0)
			if offset < r.inputAcked || offset > int64(len(r.input)) {
				return fmt.Errorf("ack of %d after %d", offset, r.inputAcked)
			}
			r.inputAcked = offset
		case frame.Message.Type == "exit":
			r.exit = frame.Message
			return nil
		default:
			return errors.New(show(frame.Message))
		}
		if got := len(r.stdout) + len(r.stderr); got-acked >= 1+random.Intn(250000) {
			acked = got
			if err := l.send(object{"type": "ack", "offset": acked}); err != nil {
				return err
			}
		}
	}
}

func TestCommandsSurviveBreaksAtAnyByte(t *testing.T) {
	_, path := newServer(t)
	numbers := func(last int) []byte {
		var text bytes.Buffer
		for i := 1; i <= last; i++ {
			fmt.Fprintln(&text, i)
		}
		return text.Bytes()
	}
	input := make([]byte, 700000)
	rand.New(rand.NewSource(1)).Read(input)
	for _, c := range []struct {
		name, script   string
		input          []byte
		pty            bool
		stdout, stderr []byte
		waitFor        string
	}{
		{name: "output", script: "seq 1 60000; seq 1 20000 >&2", stdout: numbers(60000), stderr: numbers(20000)},
		{name: "quick", script: "echo hi", stdout: []byte("hi\n")},
		{name: "input", script: "cksum", input: input, stdout: []byte(cksum(t, input))},
		{name: "both", script: "cat", input: input, stdout: input},
		{name: "terminal", script: "stty -opost; seq 1 60000", pty: true, stdout: numbers(60000)},
		{name: "typing", script: "stty raw -echo; echo ready; head -c 200000", pty: true, input: input[:200000],
			stdout: append([]byte("ready\n"), input[:200000]...), waitFor: "ready\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := int64(1); seed <= 8; seed++ {
				f := &flaky{t: t, path: path, random: rand.New(rand.NewSource(seed)), most: 200000}
				marker := filepath.Join(t.TempDir(), "marker")
				message := object{"type": "exec", "shell": "echo ran >> " + marker + "; " + c.script + "; exit 7", "user": strconv.Itoa(os.Geteuid()),
					"job": fmt.Sprintf("%s-number-%08d", c.name, seed), "keepMs": 20000, "stdin": c.input != nil}
				if c.pty {
					message["pty"] = eightyByTwentyFour
				}
				r := &remote{message: message, input: c.input, waitFor: c.waitFor}
				f.again(func(l *link) error { return r.follow(l, f.random) })
				if r.exit.Integer("code", -1) != 7 || !bytes.Equal(r.stdout, c.stdout) || !bytes.Equal(r.stderr, c.stderr) {
					t.Fatalf("seed %d: %s, %d and %d bytes", seed, show(r.exit), len(r.stdout), len(r.stderr))
				}
				expectContent(t, marker, []byte("ran\n"))
			}
		})
	}
}

// cksum is what cksum(1) prints of its input.
func cksum(t *testing.T, input []byte) string {
	h := connect(t)
	h.send(object{"type": "exec", "argv": []string{"cksum"}, "stdin": true, "user": strconv.Itoa(os.Geteuid())})
	acked := int64(0)
	for sent := 0; sent < len(input); {
		if int64(sent)-acked+50000 <= 262144 {
			size := 50000
			if size > len(input)-sent {
				size = len(input) - sent
			}
			h.sendData(input[sent : sent+size])
			sent += size
			continue
		}
		if frame := h.next(); frame.Message.Type == "ack" {
			acked = frame.Message.Integer("offset", 0)
		}
	}
	h.send(object{"type": "eof"})
	r := h.collect()
	return r.stdout.String()
}
