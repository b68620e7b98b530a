package frame

import (
	"bytes"
	"encoding/binary"
)

// Frame is a frame that arrived whole. Payload is valid until the next call of Space or Next.
type Frame struct {
	Header
	Payload []byte
}

// Decoder finds the frames in what a line gives. Bytes go in through Space and Advance, frames come out of Next.
type Decoder interface {
	// Space is where the next read of the line goes; it is never empty.
	Space() []byte
	// Advance says that n bytes have been read into the Space.
	Advance(n int)
	// Next gives the next whole frame; false when there is none in what has come so far.
	Next(f *Frame) bool
	// Partial says whether a frame has begun whose end has not come.
	Partial() bool
	// GiveUp stops waiting for that end, and for that of every other frame that began in what has come: the line has been
	// quiet for too long. It may be called while a read into the Space is going on, and is followed by Next.
	GiveUp()
	// Damaged counts the frames that were found to be damaged; Last is why the last one was.
	Damaged() uint64
	Last() *Damage
}

// rawBufferBytes holds the largest frame several times, so that a partial one seldom has to be moved to its beginning.
const rawBufferBytes = 4 * MaxFrameBytes

type damages struct {
	count uint64
	last  *Damage
}

func (d *damages) Damaged() uint64 { return d.count }
func (d *damages) Last() *Damage   { return d.last }

func (d *damages) add(why *Damage) {
	d.count++
	d.last = why
}

// rawDecoder looks for frames anywhere in an 8-bit stream.
type rawDecoder struct {
	damages
	buf        []byte
	start, end int // what has not been looked at is buf[start:end]
	header     Header
	parsed     bool // header is that of the frame at start
	// lost is true from a damaged frame, or bytes between frames, to the next good frame: it is one damage, however often
	// the magic's two bytes are found inside it.
	lost bool
	// quiet is true from GiveUp until all that had come is looked at: what is not whole by then is no frame. (One at a time,
	// a buffer full of headers would hold the line up for as many silences.)
	quiet bool
}

// NewDecoder makes a decoder for a line of 8 clean bits.
func NewDecoder() Decoder { return &rawDecoder{buf: make([]byte, rawBufferBytes)} }

func (d *rawDecoder) Space() []byte {
	if d.start == d.end {
		d.start, d.end = 0, 0
	} else if len(d.buf)-d.end < MaxFrameBytes {
		d.end = copy(d.buf, d.buf[d.start:d.end])
		d.start = 0
	}
	return d.buf[d.end:]
}

func (d *rawDecoder) Advance(n int) { d.end += n }

func (d *rawDecoder) Partial() bool { return d.start < d.end }

func (d *rawDecoder) Next(f *Frame) bool {
	for {
		rest := d.buf[d.start:d.end]
		if !d.parsed {
			skipped := beginning(rest)
			if skipped > 0 {
				d.damage(errHeaderCheck)
				d.start += skipped
				rest = rest[skipped:]
			}
			if len(rest) < HeaderBytes {
				if d.cut(len(rest) > 0) {
					continue
				}
				return false
			}
			if why := parseHeader(rest, &d.header); why != nil {
				d.damage(why)
				d.start++
				continue
			}
			d.parsed = true
		}
		size := d.header.FrameBytes()
		if len(rest) < size {
			if d.cut(true) {
				continue
			}
			return false
		}
		d.parsed = false
		if !checkPayload(rest, &d.header) {
			d.lost = false // the header was a good one, so this is another frame than what was damaged before
			d.damage(errPayloadCheck)
			d.start++
			continue
		}
		d.lost = false
		d.start += size
		f.Header = d.header
		f.Payload = rest[HeaderBytes : HeaderBytes+d.header.Length]
		return true
	}
}

func (d *rawDecoder) GiveUp() { d.quiet = true }

// cut gives up the frame at start, if there is one and it is to be given up.
func (d *rawDecoder) cut(isThere bool) bool {
	if !isThere || !d.quiet {
		d.quiet = false
		return false
	}
	d.parsed = false
	d.damage(errFrameCut)
	d.start++
	return true
}

func (d *rawDecoder) damage(why *Damage) {
	if !d.lost {
		d.add(why)
		d.lost = true
	}
}

// beginning finds where in p a frame may begin: at the magic, or at its first byte when that is p's last.
func beginning(p []byte) int {
	const first, second = magic >> 8, magic & 0xFF
	if len(p) >= 2 && binary.BigEndian.Uint16(p) == magic {
		return 0
	}
	for at := 0; ; at++ {
		next := bytes.IndexByte(p[at:], first)
		if next < 0 {
			return len(p)
		}
		at += next
		if at == len(p)-1 || p[at+1] == second {
			return at
		}
	}
}
