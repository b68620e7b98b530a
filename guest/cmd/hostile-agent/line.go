package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/serial"
	"bandsox.dev/guest/internal/serial/frame"
	"github.com/cespare/xxhash/v2"
)

// lineMode is one way in which datalink and mux (SERIAL.md sections 4 and 5) go wrong.
type lineMode struct {
	name string
	// greets: HELLO is answered, and the session before it is given up.
	greets bool
	// acknowledges what the host sends, as a datalink has to.
	acknowledges bool
	// deaf: the line is not read.
	deaf bool
	// opened is called with each stream that the host opens.
	opened func(l *badLine, stream uint32)
	// flood is called again and again: where greets is set, only within a session.
	flood func(l *badLine)
}

// The kinds of SERIAL.md section 5.
const (
	muxAccepted = 2
	muxData     = 3
	muxCredit   = 4
	muxClose    = 5
)

const floodBytes = 16 << 10

// lineModes are chosen by their index.
var lineModes = []lineMode{
	{name: "noise", flood: func(l *badLine) { l.write(l.noise(floodBytes)) }},
	{name: "headers-too-large", flood: func(l *badLine) { l.write(bytes.Repeat(l.header(0xffff), floodBytes/frame.HeaderBytes)) }},
	{name: "headers-unfinished", flood: func(l *badLine) { l.write(bytes.Repeat(l.header(frame.MaxPayload), floodBytes/frame.HeaderBytes)) }},
	{name: "flood-hello", flood: func(l *badLine) { l.repeat(frame.Header{Kind: frame.Hello, FromGuest: true}, l.noise(10)) }},
	{name: "flood-welcome", greets: true, acknowledges: true, flood: func(l *badLine) {
		l.repeat(frame.Header{Kind: frame.Welcome, FromGuest: true}, l.welcome(l.random.Uint64()))
	}},
	{name: "flood-lost", greets: true, acknowledges: true, flood: func(l *badLine) {
		l.repeat(frame.Header{Kind: frame.Lost, FromGuest: true}, binary.BigEndian.AppendUint32(nil, l.session))
	}},
	{name: "other-sessions", flood: func(l *badLine) {
		l.repeat(frame.Header{Kind: frame.Data, FromGuest: true, Session: l.random.Uint32(), Number: 1}, l.noise(1000))
	}},
	{name: "gaps", greets: true, acknowledges: true, flood: func(l *badLine) {
		for offset := uint64(1); offset < 1<<20 && !l.over(); offset += 20 { // and again, once all places are taken
			l.sendData(offset, []byte{1})
		}
	}},
	{name: "ack-beyond", greets: true, flood: func(l *badLine) { l.acknowledge(1<<40, 1<<40) }},
	{name: "all-lost", greets: true, opened: func(*badLine, uint32) {}}, // see hear: each ACK says that nothing came in order
	{name: "beyond-window", greets: true, flood: func(l *badLine) { l.sendData(1<<40, []byte{1}) }},
	{name: "unknown-streams", greets: true, acknowledges: true, flood: func(l *badLine) { l.say(muxData, 1<<30, zeros(1000)) }},
	{name: "overrun", greets: true, acknowledges: true, opened: func(l *badLine, stream uint32) {
		l.say(muxAccepted, stream, nil)
		for i := 0; i < 64; i++ {
			l.say(muxData, stream, zeros(floodBytes))
		}
	}},
	{name: "flood-credit", greets: true, acknowledges: true, opened: func(l *badLine, stream uint32) {
		l.say(muxAccepted, stream, nil)
		for i := 0; i < 1000 && !l.over(); i++ {
			l.sayOften(muxCredit, stream, []byte{0, 0, 0, 16})
		}
	}},
	{name: "flood-close", greets: true, acknowledges: true, opened: func(l *badLine, stream uint32) {
		l.say(muxAccepted, stream, nil)
		l.sayOften(muxClose, stream, nil)
	}},
	{name: "accepted-twice", greets: true, acknowledges: true, opened: func(l *badLine, stream uint32) {
		l.say(muxAccepted, stream, nil)
		l.say(muxAccepted, stream, nil)
	}},
	{name: "mute", greets: true, acknowledges: true, opened: func(l *badLine, stream uint32) { l.say(muxAccepted, stream, nil) }},
	{name: "never-acknowledged", greets: true, opened: func(l *badLine, stream uint32) { l.say(muxAccepted, stream, nil) }},
	{name: "unread", deaf: true, flood: func(l *badLine) { time.Sleep(100 * time.Millisecond) }},
	{name: "drip", deaf: true, flood: func(l *badLine) {
		for _, b := range l.frame(frame.Header{Kind: frame.Welcome, FromGuest: true}, l.welcome(1)) {
			if !l.over() {
				l.write([]byte{b})
				time.Sleep(dripInterval)
			}
		}
	}},
	// What a console may print, where the line is one: text between what begins like frames.
	{name: "console", flood: func(l *badLine) {
		l.printed++
		l.write([]byte(fmt.Sprintf("console line %d\r\n", l.printed)))
		high := l.noise(floodBytes / 4)
		for i := range high {
			if high[i] |= 0x80; i%50 == 0 {
				high[i] = frame.RS
			}
		}
		l.write(append(high, '\n'))
	}},
	{name: "console-shreds", flood: func(l *badLine) {
		l.write(bytes.Repeat([]byte{'a', frame.RS}, floodBytes/2))
	}},
}

// badLine is the guest's end of a line in one of the modes.
type badLine struct {
	mode    lineMode
	shared  *sharedLine
	text    bool
	decoder frame.Decoder
	random  *rand.Rand
	until   time.Time
	late    <-chan time.Time
	printed int

	// Of the session: its nonce from the host, what was sent, and what came.
	nonce   uint64
	up      bool
	session uint32
	number  uint64
	offset  uint64
	next    uint64
	highest uint64
}

// behave is a line in a mode, for so long.
func behave(shared *sharedLine, coding serial.Coding, mode lineMode, lasting time.Duration) {
	defer console.Contain("being a hostile line")
	l := &badLine{
		mode: mode, shared: shared, text: coding == serial.Text, decoder: frame.NewDecoder(),
		random: rand.New(rand.NewSource(1)), until: time.Now().Add(lasting), late: time.After(lasting),
	}
	if l.text {
		l.decoder = frame.NewTextDecoder()
	}
	for !l.over() {
		floods := mode.flood != nil && (!mode.greets || l.up)
		if !mode.deaf {
			l.listen(!floods)
		}
		if mode.flood != nil && (!mode.greets || l.up) {
			mode.flood(l)
		}
	}
}

func (l *badLine) over() bool { return !time.Now().Before(l.until) }

// listen takes in what there is; waits says whether for the next bytes, too.
func (l *badLine) listen(waits bool) {
	late := l.late
	if !waits {
		passed := make(chan time.Time)
		close(passed)
		late = passed
	}
	for {
		space := l.decoder.Space()
		n, there := l.shared.read(space, nil, late)
		if !there {
			return
		}
		l.decoder.Advance(n)
		for f := (frame.Frame{}); l.decoder.Next(&f); {
			l.hear(&f)
		}
		if waits {
			return
		}
	}
}

// hear answers a frame of the host as far as the mode wants it.
func (l *badLine) hear(f *frame.Frame) {
	switch {
	case f.FromGuest || !l.mode.greets:
	case f.Kind == frame.Hello:
		l.nonce = binary.BigEndian.Uint64(f.Payload[2:])
		own := l.random.Uint64()
		welcome := l.welcome(own)
		l.up, l.session = true, uint32(xxhash.Sum64(welcome[2:]))
		l.number, l.offset, l.next, l.highest = 0, 0, 0, 0
		l.send(frame.Header{Kind: frame.Welcome}, welcome)
	case f.Session != l.session || !l.up:
		l.send(frame.Header{Kind: frame.Lost}, binary.BigEndian.AppendUint32(nil, f.Session))
	case f.Kind == frame.Data:
		l.highest = f.Number
		if f.Offset == l.next {
			l.next += uint64(f.Length)
			l.heard(f.Payload)
		}
		switch {
		case l.mode.acknowledges:
			l.acknowledge(l.next, l.highest)
		case l.mode.name == "all-lost":
			l.acknowledge(0, l.highest)
		}
	}
}

// heard finds the streams that the host opens; it writes each message whole.
func (l *badLine) heard(p []byte) {
	const open, messageHeader = 1, 9
	for len(p) >= messageHeader {
		stream, length := binary.BigEndian.Uint32(p[1:]), int(binary.BigEndian.Uint32(p[5:]))
		if p[0] == open && l.mode.opened != nil {
			l.mode.opened(l, stream)
		}
		if length > len(p)-messageHeader {
			return
		}
		p = p[messageHeader+length:]
	}
}

func (l *badLine) welcome(own uint64) []byte {
	p := binary.BigEndian.AppendUint64([]byte{0, 1}, l.nonce)
	return binary.BigEndian.AppendUint64(p, own)
}

// say sends a message as an honest mux would.
func (l *badLine) say(kind byte, stream uint32, payload []byte) {
	l.sayBytes(message(kind, stream, payload))
}

func (l *badLine) sayOften(kind byte, stream uint32, payload []byte) {
	l.sayBytes(bytes.Repeat(message(kind, stream, payload), messagesAtOnce))
}

func (l *badLine) sayBytes(p []byte) {
	l.sendData(l.offset, p)
	l.offset += uint64(len(p))
}

func message(kind byte, stream uint32, payload []byte) []byte {
	p := binary.BigEndian.AppendUint32([]byte{kind}, stream)
	return append(binary.BigEndian.AppendUint32(p, uint32(len(payload))), payload...)
}

func (l *badLine) sendData(offset uint64, payload []byte) {
	l.number++
	l.send(frame.Header{Kind: frame.Data, Session: l.session, Number: l.number, Offset: offset, Prompt: true}, payload)
}

func (l *badLine) acknowledge(next, highest uint64) {
	p := binary.BigEndian.AppendUint64(nil, next)
	l.send(frame.Header{Kind: frame.Ack, Session: l.session}, binary.BigEndian.AppendUint64(p, highest))
}

// repeat sends a frame until a good deal is sent.
func (l *badLine) repeat(header frame.Header, payload []byte) {
	one := l.frame(header, payload)
	l.write(bytes.Repeat(one, 1+floodBytes/len(one)))
}

func (l *badLine) send(header frame.Header, payload []byte) {
	header.FromGuest = true
	l.write(l.frame(header, payload))
}

// frame is one as the line carries it.
func (l *badLine) frame(header frame.Header, payload []byte) []byte {
	header.Length = len(payload)
	p := make([]byte, header.FrameBytes())
	copy(p[frame.HeaderBytes:], payload)
	frame.Seal(p, &header)
	return l.coded(p)
}

// header is one with a good check, of a frame of so much payload.
func (l *badLine) header(length uint16) []byte {
	p := make([]byte, frame.HeaderBytes)
	frame.Seal(p, &frame.Header{Kind: frame.Data, FromGuest: true, Number: 1})
	binary.BigEndian.PutUint16(p[26:], length)
	binary.BigEndian.PutUint32(p[28:], crc32.ChecksumIEEE(p[:28]))
	return l.coded(p)
}

func (l *badLine) coded(p []byte) []byte {
	if l.text {
		return frame.AppendText(nil, p)
	}
	return p
}

func (l *badLine) noise(count int) []byte {
	p := make([]byte, count)
	l.random.Read(p)
	return p
}

// write gives bytes to the line; one that fails shows itself where it is read.
func (l *badLine) write(p []byte) { _, _ = l.shared.device.Write(p) }
