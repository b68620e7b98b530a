package main

import (
	"net"
	"path"
	"strings"
	"sync"
	"time"

	"bandsox.dev/guest/internal/wire"
)

const (
	// byPath is the mode in which the operation names the misbehaviour.
	byPath = "by-path"
	// able is the same of an agent with every capability of PROTOCOL.md.
	able = "able"
)

const dripInterval = time.Second

// object is a message; nothing checks it.
type object map[string]interface{}

// guest is one connection. All its writes ignore errors until stopped says that the host has gone.
type guest struct {
	conn    net.Conn
	decoder *wire.Decoder
	stopped bool
}

// serve reads the hello and answers it in the mode, or rightly and then misbehaves as the first operation says.
func (g *guest) serve(mode string) {
	g.decoder = wire.NewDecoder(g.conn, wire.ToGuest)
	if _, err := g.decoder.Next(); err != nil {
		return
	}
	if misbehave, known := onHello[mode]; known {
		misbehave(g, object{})
		return
	}
	greeting := hello(1)
	if mode == able {
		greeting["capabilities"] = []string{"pty", "resume", "attach", "connect", "tools", "links"}
	}
	g.send(greeting)
	for !g.stopped {
		frame, err := g.decoder.Next()
		if err != nil {
			return
		}
		operation, name := describe(frame.Message)
		if mode != byPath && mode != able {
			name = mode
		}
		if misbehave, known := onOperation[name]; known {
			misbehave(g, operation)
			return
		}
		g.send(object{"type": "error", "code": "not-found", "message": "there is no misbehaviour called " + name})
	}
}

// jobs has the misbehaviour that each command named when it was begun: an attach has only the job's name.
var jobs sync.Map

// describe gives an operation's fields of interest and the misbehaviour that it names.
func describe(message wire.Message) (object, string) {
	named := message.Text("path")
	if argv := message.Texts("argv"); len(argv) > 0 {
		named = argv[0]
	}
	switch message.Type {
	case "exec":
		jobs.Store(message.Text("job"), named)
	case "attach":
		if known, there := jobs.Load(message.Text("job")); there {
			named = known.(string)
		}
	case "connect":
		named = message.Text("host")
	case "links":
		named = "strange-links"
	}
	return object{"type": message.Type, "path": named, "offset": message.Integer("offset", 0)}, path.Base(named)
}

func hello(protocol int) object {
	return object{
		"type": "hello", "protocol": protocol, "agent": "hostile", "bootId": "00000000-0000-0000-0000-000000000000",
		"capabilities": []string{}, "checksums": []string{"xxh64", "md5", "sha256"},
	}
}

// write notes when the host has gone, which ends every loop.
func (g *guest) write(bytes []byte) {
	if _, err := g.conn.Write(bytes); err != nil {
		g.stopped = true
	}
}

func (g *guest) send(messages ...object) {
	for _, message := range messages {
		frame, err := wire.AppendMessage(nil, message)
		if err != nil {
			panic(err)
		}
		g.write(frame)
	}
}

func (g *guest) sendFrame(kind wire.Kind, payload []byte) {
	frame := append(make([]byte, wire.HeaderBytes), payload...)
	wire.PutHeader(frame, kind, len(payload))
	g.write(frame)
}

// drip sends bytes slowly.
func (g *guest) drip(bytes []byte) {
	for i := 0; i < len(bytes) && !g.stopped; i++ {
		g.write(bytes[i : i+1])
		time.Sleep(dripInterval)
	}
}

// flood sends the same frame until the host has gone.
func (g *guest) flood(kind wire.Kind, payload []byte) {
	for !g.stopped {
		g.sendFrame(kind, payload)
	}
}

// ignore reads and forgets until the host has gone.
func (g *guest) ignore() {
	for {
		if _, err := g.decoder.Next(); err != nil {
			return
		}
	}
}

// readUntil reads up to a message of a type, and counts the data in front of it. false: the host has gone.
func (g *guest) readUntil(kind string) (dataBytes int64, there bool) {
	for {
		frame, err := g.decoder.Next()
		if err != nil {
			g.stopped = true
			return dataBytes, false
		}
		dataBytes += int64(len(frame.Payload))
		if frame.Kind == wire.KindMessage && frame.Message.Type == kind {
			return dataBytes, true
		}
	}
}

func deepJSON() []byte { return []byte(strings.Repeat("[", 100000)) }
