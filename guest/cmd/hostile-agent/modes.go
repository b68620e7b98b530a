package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"bandsox.dev/guest/internal/wire"
)

// misbehaviour does one thing wrong. The operation holds the type and path that the host asked for.
type misbehaviour func(g *guest, operation object)

const (
	chunkBytes  = 65536
	windowBytes = 4 << 20
)

// anywhere are wrong as the answer to a hello and to any operation.
var anywhere = map[string]misbehaviour{
	"garbage": func(g *guest, _ object) {
		g.write(bytes.Repeat([]byte("HTTP/1.1 200 OK\r\n\xff\x00\x1b[2J"), 1000))
		g.ignore()
	},
	"silent":     func(g *guest, _ object) { g.ignore() },
	"huge":       func(g *guest, _ object) { g.write([]byte{byte(wire.KindMessage), 0xff, 0xff, 0xff, 0xff}); g.ignore() },
	"empty":      func(g *guest, _ object) { g.write([]byte{byte(wire.KindMessage), 0, 0, 0, 0}); g.ignore() },
	"deep":       func(g *guest, _ object) { g.sendFrame(wire.KindMessage, deepJSON()); g.ignore() },
	"not-utf8":   func(g *guest, _ object) { g.sendFrame(wire.KindMessage, []byte("{\"type\":\"\xff\"}")); g.ignore() },
	"cut":        func(g *guest, _ object) { g.write([]byte{byte(wire.KindMessage), 0, 0, 1, 0, '{', '"'}) },
	"flood-pong": func(g *guest, _ object) { g.flood(wire.KindMessage, []byte(`{"type":"pong","uptimeMs":1}`)) },
}

// onHello are the modes of ports.
var onHello = merge(anywhere, map[string]misbehaviour{
	"drip":          func(g *guest, _ object) { g.drip(encode(hello(1))) },
	"wrong-version": func(g *guest, _ object) { g.send(hello(60000)); g.ignore() },
})

// onOperation are the modes that a path names.
var onOperation = merge(anywhere, onResumption, onConnect, map[string]misbehaviour{
	"drip": func(g *guest, _ object) {
		g.drip(encode(object{"type": "error", "code": "not-found", "message": "slowly"}))
	},
	"flood-stdout": func(g *guest, _ object) { g.start(); g.flood(wire.KindStdout, zeros(chunkBytes)) },
	"flood-stderr": func(g *guest, _ object) { g.start(); g.flood(wire.KindStderr, zeros(chunkBytes)) },
	"bad-exit": func(g *guest, _ object) {
		g.start()
		g.send(object{"type": "exit", "code": 0, "signal": "SIGKILL"})
		g.ignore()
	},
	"late-output": func(g *guest, _ object) {
		g.start()
		g.send(object{"type": "exit", "code": 0})
		g.sendFrame(wire.KindStdout, []byte("too late\n"))
		g.ignore()
	},
	"wrong-answer": func(g *guest, operation object) {
		answer := object{"type": "listed", "count": 0}
		if operation["type"] == "list" {
			answer = object{"type": "exit", "code": 0}
		}
		g.send(answer)
		g.ignore()
	},
	"flood-entries": func(g *guest, _ object) { g.flood(wire.KindMessage, entries(256, "file")) },
	"strange-names": strangeNames,
	"flood-data": func(g *guest, _ object) {
		g.send(downloadReady(10))
		g.flood(wire.KindData, zeros(chunkBytes))
	},
	"huge-size": func(g *guest, _ object) {
		g.send(downloadReady(1<<53 - 1))
		g.sendFrame(wire.KindData, []byte("x"))
		g.send(complete([]byte("x")))
		g.ignore()
	},
	"short-data": func(g *guest, _ object) {
		g.send(downloadReady(1000))
		g.sendFrame(wire.KindData, zeros(999))
		g.send(complete(zeros(999)))
		g.ignore()
	},
	"bad-checksum": badChecksum,
	"ack-beyond":   func(g *guest, operation object) { g.acknowledge(operation, 1<<40) },
	"ack-back":     func(g *guest, operation object) { g.acknowledge(operation, 1, 0) },
	"flood-ack": func(g *guest, operation object) {
		g.acknowledge(operation)
		g.flood(wire.KindMessage, []byte(`{"type":"ack","offset":0}`))
	},
})

func strangeNames(g *guest, operation object) {
	if operation["type"] == "stat" {
		g.send(object{"type": "info", "file": entry("../../etc/passwd")})
		g.ignore()
		return
	}
	names := []string{"..", ".", "", "/etc/passwd", "../../etc/passwd", "a/b", "<img src=x onerror=alert(1)>", "\x1b[2J\x07", "\u202egpj.exe", "same", "same"}
	for _, name := range names {
		g.sendFrame(wire.KindMessage, entries(1, name))
	}
	g.send(object{"type": "listed", "count": len(names)})
	g.ignore()
}

func badChecksum(g *guest, operation object) {
	if operation["type"] == "download" {
		g.send(downloadReady(3))
		g.sendFrame(wire.KindData, []byte("abc"))
		g.send(complete([]byte("abd")))
		g.ignore()
		return
	}
	g.send(uploadReady())
	if size, there := g.readUntil("complete"); there {
		g.send(object{"type": "complete", "size": size, "checksum": "0123456789abcdef"})
		g.ignore()
	}
}

// acknowledge lets the host send in an upload or an exec, and sends acks of its own invention.
func (g *guest) acknowledge(operation object, offsets ...int64) {
	if operation["type"] == "exec" {
		g.start()
	} else {
		g.send(uploadReady())
	}
	if _, err := g.decoder.Next(); err != nil { // the first data
		g.stopped = true
	}
	for _, offset := range offsets {
		g.send(object{"type": "ack", "offset": offset})
	}
	if len(offsets) > 0 {
		g.ignore()
	}
}

func (g *guest) start() { g.send(object{"type": "started", "pid": 2}) }

func uploadReady() object {
	return object{"type": "ready", "chunkBytes": chunkBytes, "windowBytes": windowBytes, "offset": 0}
}

func downloadReady(size int64) object {
	ready := uploadReady()
	ready["size"], ready["mode"], ready["mtimeMs"] = size, 0o644, 0
	return ready
}

func complete(data []byte) object {
	return object{"type": "complete", "size": len(data), "checksum": fmt.Sprintf("%016x", xxhash.Sum64(data))}
}

func entry(name string) object {
	return object{"name": name, "type": "file", "size": 1, "mode": 0o644, "uid": 0, "gid": 0, "mtimeMs": 0}
}

// entries is the payload of an `entries` message with the same entry many times.
func entries(count int, name string) []byte {
	files := make([]object, count)
	for i := range files {
		files[i] = entry(name)
	}
	return payloadOf(object{"type": "entries", "files": files})
}

func payloadOf(message object) []byte {
	payload, err := json.Marshal(message)
	if err != nil {
		panic(err)
	}
	return payload
}

func encode(message object) []byte {
	frame, err := wire.AppendMessage(nil, message)
	if err != nil {
		panic(err)
	}
	return frame
}

func zeros(count int) []byte { return make([]byte, count) }

func merge(maps ...map[string]misbehaviour) map[string]misbehaviour {
	all := map[string]misbehaviour{}
	for _, m := range maps {
		for name, does := range m {
			all[name] = does
		}
	}
	return all
}
