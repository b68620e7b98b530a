package main

import "bandsox.dev/guest/internal/wire"

// far is beyond all that anybody sent.
const far = 1 << 50

// onResumption are wrong in what a host has from a guest that it comes back to (PROTOCOL.md section 5), and in links (8).
var onResumption = map[string]misbehaviour{
	"again": again,
	"ready-beyond": func(g *guest, operation object) {
		g.readyFrom(operation, far)
		g.ignore()
	},
	"flood-ready": func(g *guest, operation object) {
		go g.ignore() // lest the host's own bytes stand in its way
		for !g.stopped {
			g.readyFrom(operation, operation["offset"])
		}
	},
	"attached-elsewhere": onAttach(func(g *guest, _ object) {
		g.send(attached(far, 0))
		g.ignore()
	}),
	"attached-beyond": onAttach(func(g *guest, operation object) {
		g.send(attached(operation["offset"], far))
		g.ignore()
	}),
	"flood-attached": onAttach(func(g *guest, operation object) {
		g.flood(wire.KindMessage, payloadOf(attached(operation["offset"], 0)))
	}),
	"ack-again": onAttach(func(g *guest, operation object) {
		g.send(attached(operation["offset"], 0), object{"type": "ack", "offset": 0})
	}),
	"ack-nothing": func(g *guest, _ object) {
		g.start()
		g.send(object{"type": "ack", "offset": 0})
		g.ignore()
	},
	"strange-links": func(g *guest, _ object) {
		const obeyed = "\x1b[2J\x1b]0;owned\x07\u009b31m\u202e\r\n"
		g.send(object{
			"type":   "links",
			"vsock":  object{"kernel": true, "device": true, "module": obeyed, "reason": obeyed + "<script>"},
			"serial": []object{{"name": obeyed, "kind": "port", "up": true}},
		})
		g.ignore()
	},
}

// onAttach begins a command, ends the connection behind three bytes of output, and misbehaves when the host comes back.
func onAttach(misbehave misbehaviour) misbehaviour {
	return func(g *guest, operation object) {
		if operation["type"] == "attach" {
			misbehave(g, operation)
			return
		}
		g.start()
		g.sendFrame(wire.KindStdout, []byte("abc"))
	}
}

func attached(offset, inputOffset interface{}) object {
	return object{"type": "attached", "pid": 2, "offset": offset, "inputOffset": inputOffset}
}

// again never gets further.
func again(g *guest, operation object) {
	switch operation["type"] {
	case "exec":
		g.start()
	case "attach":
		g.send(attached(operation["offset"], 0))
	default:
		g.readyFrom(operation, operation["offset"])
	}
}

func (g *guest) readyFrom(operation object, offset interface{}) {
	ready := uploadReady()
	if operation["type"] == "download" {
		ready = downloadReady(1 << 20)
	}
	ready["offset"] = offset
	g.send(ready)
}

// onConnect are wrong in a forwarded connection (PROTOCOL.md section 6).
var onConnect = map[string]misbehaviour{
	"connect-ack-beyond": func(g *guest, _ object) {
		g.send(connected, object{"type": "ack", "offset": far})
		g.ignore()
	},
	"connect-ack-back": func(g *guest, _ object) {
		g.send(connected)
		if _, there := g.readUntil("eof"); !there {
			return
		}
		g.send(object{"type": "ack", "offset": 1}, object{"type": "ack", "offset": 0})
		g.ignore()
	},
	"connect-eof-twice": func(g *guest, _ object) {
		g.send(connected, object{"type": "eof"}, object{"type": "eof"})
		g.ignore()
	},
	"connect-late-data": func(g *guest, _ object) {
		g.send(connected, object{"type": "eof"})
		g.sendFrame(wire.KindData, []byte("too late"))
		g.ignore()
	},
	"connect-flood":   func(g *guest, _ object) { g.send(connected); g.flood(wire.KindData, zeros(chunkBytes)) },
	"connect-slivers": func(g *guest, _ object) { g.send(connected); g.flood(wire.KindData, []byte("x")) },
}

var connected = object{"type": "connected"}
