package datalink

import "sort"

// arena keeps the frames that are not acknowledged as they were written: bytes go from their stream into the frame that is
// written, with one copy, and a frame that was lost is made anew from what lies here. A ring, in which each frame is whole.
type arena struct {
	buf      []byte
	tail     int
	segments []segment // oldest first
}

// segment is one frame's share of the stream.
type segment struct {
	offset uint64
	length int
	start  int // where its place in buf begins: what was written in front of it goes with it
	at     int // where its payload lies
}

func (a *arena) reset() {
	a.tail = 0
	a.segments = a.segments[:0]
}

// reserve finds room for n bytes in one piece; false when there is none until more is acknowledged.
func (a *arena) reserve(n int) (int, bool) {
	if len(a.segments) == 0 {
		a.tail = 0
		return 0, n <= len(a.buf)
	}
	first := a.segments[0].start
	switch {
	case a.tail <= first: // the used part goes around the end
		return a.tail, n <= first-a.tail
	case n <= len(a.buf)-a.tail:
		return a.tail, true
	default:
		return 0, n <= first
	}
}

// keep holds a segment that ends at end until it is freed.
func (a *arena) keep(s segment, end int) {
	a.segments = append(a.segments, s)
	a.tail = end
}

// free forgets what lies below offset. Only the writer calls it, between two writes: an acknowledgement may come while the
// frame is still being written.
func (a *arena) free(offset uint64) {
	n := 0
	for n < len(a.segments) && a.segments[n].offset+uint64(a.segments[n].length) <= offset {
		n++
	}
	if n > 0 {
		a.segments = a.segments[:copy(a.segments, a.segments[n:])]
	}
}

// copyOut copies what the stream has from offset on. All of it must still be kept.
func (a *arena) copyOut(to []byte, offset uint64) {
	at := sort.Search(len(a.segments), func(i int) bool {
		return a.segments[i].offset+uint64(a.segments[i].length) > offset
	})
	for len(to) > 0 {
		s := a.segments[at]
		skip := int(offset - s.offset)
		n := copy(to, a.buf[s.at+skip:s.at+s.length])
		to, offset, at = to[n:], offset+uint64(n), at+1
	}
}
