package datalink

import (
	"encoding/binary"
	"time"

	"bandsox.dev/guest/internal/serial/frame"
)

const (
	openFrames = frame.MaxSpan + 1 // frames in flight, at most
	arenaBytes = maxWindow + 256<<10
)

// sent is a frame whose fate is open.
type sent struct {
	offset uint64
	length int
	at     time.Duration
	// What had been delivered when it was sent, and when the last of that was: its rate is what comes in between.
	delivered   uint64
	deliveredAt time.Duration
	limited     bool // there was more to send
	prompt      bool // it asked for its ACK, so its round trip is the line's
}

// sender cuts the stream into frames and sends again what was lost.
type sender struct {
	arena  arena
	una    uint64 // offset of the first byte that the other side does not have in order
	next   uint64 // offset of the next new byte
	oldest uint64 // number of the first frame whose fate is open
	number uint64 // number of the next frame
	open   [openFrames]sent
	flying int   // bytes in open frames
	lost   spans // what is to be sent again

	window      window
	payload     payload
	unprompted  int // bytes since an ACK was asked for
	delivered   uint64
	deliveredAt time.Duration

	probeDue bool
	probes   int           // without an answer
	lastSent time.Duration // when the last frame went
	progress time.Duration // when the other side last acknowledged something, or could begin to
}

func (s *sender) reset(p pace, now time.Duration) {
	if s.arena.buf == nil {
		s.arena.buf = make([]byte, arenaBytes)
	}
	s.arena.reset()
	s.una, s.next, s.oldest, s.number, s.flying, s.lost = 0, 0, 1, 1, 0, s.lost[:0]
	s.window = window{bytes: p.window, least: minWindow, most: p.mostWindow, longest: p.queue, period: now}
	s.payload = payload{bytes: p.payload, most: p.payload}
	s.unprompted, s.delivered, s.deliveredAt = 0, 0, now
	s.probeDue, s.probes, s.lastSent, s.progress = false, 0, now, now
}

func (s *sender) outstanding() bool { return s.una < s.next }

func (s *sender) probeAt(least time.Duration) time.Duration {
	from := s.lastSent
	if s.progress > from {
		from = s.progress
	}
	wait := s.window.probeAfter(least)
	// Below what an answer takes on this line, every probe would come for nothing, and fill it with what it carries already.
	most := mostProbe
	if wait > most {
		most = wait
	}
	if most > longestProbe {
		most = longestProbe
	}
	for n := s.probes; n > 0 && wait < most; n-- {
		wait *= 2
	}
	if wait > most {
		wait = most
	}
	return from + wait
}

// fragment is how many bytes a frame carries now.
func (s *sender) fragment() int {
	n := s.payload.bytes
	if n > s.window.bytes/4 {
		n = s.window.bytes / 4
	}
	return n
}

// room says whether one more frame may be in flight.
func (s *sender) room() bool {
	return s.number-s.oldest < openFrames && (s.flying == 0 || s.flying+s.fragment() <= s.window.bytes)
}

// roomForNew says whether that frame may carry new bytes, which the other side must be able to keep.
func (s *sender) roomForNew() bool {
	return s.room() && s.next+uint64(s.fragment()) <= s.una+maxWindow
}

// dataSendable says whether a data frame can be sent now.
func (l *Link) dataSendable() bool {
	s := &l.sender
	if !l.session.up {
		return false
	}
	if s.probeDue || len(s.lost) > 0 && s.room() {
		return true
	}
	return s.roomForNew() && l.user.Pending() > 0
}

// build makes the bytes of the next write: greetings; or an ACK, if due, and either what is to be sent again or new bytes.
func (l *Link) build() []byte {
	s := &l.sender
	out := l.appendGreetings(l.scratch[:0])
	if !l.session.up {
		return l.encode(out)
	}
	now := l.clock.now()
	s.arena.free(s.una)
	s.probeDue = s.probeDue && s.outstanding()
	if s.probeDue || len(s.lost) > 0 || len(out) > 0 {
		if l.receiver.due {
			out = l.appendAck(out)
		}
		return l.encode(l.appendAgain(out, now))
	}
	if s.roomForNew() && l.user.Pending() > 0 {
		if batch := l.buildNew(now); len(batch) > 0 {
			return l.encode(batch)
		}
	}
	if l.receiver.due {
		out = l.appendAck(out)
	}
	return l.encode(out)
}

func (l *Link) appendAck(to []byte) []byte {
	l.receiver.ack(&l.ack)
	at := len(to)
	to = to[:at+frame.Size(maxAckBytes)]
	length := putAck(to[at+frame.HeaderBytes:], &l.ack)
	h := frame.Header{Kind: frame.Ack, FromGuest: l.settings.Guest, Session: l.session.id, Length: length}
	to = to[:at+h.FrameBytes()]
	frame.Seal(to[at:], &h)
	return to
}

// appendAgain appends lost bytes in new frames; or, when an answer is awaited for too long, the first that are unacknowledged.
func (l *Link) appendAgain(to []byte, now time.Duration) []byte {
	s := &l.sender
	if s.probeDue {
		s.probeDue = false
		if len(s.lost) == 0 {
			end := s.una + uint64(s.fragment())
			if end > s.next {
				end = s.next
			}
			s.lost.add(span{s.una, end})
		}
		if s.number-s.oldest >= openFrames {
			// Every place is taken by a frame without an answer; the oldest is as good as lost.
			l.resolve(s.oldest, true)
			s.oldest++
		}
		return l.appendLost(to, now, s.probeBytes(), true)
	}
	for len(s.lost) > 0 && s.room() && len(to)+frame.Size(s.fragment()) <= l.pace.batch {
		to = l.appendLost(to, now, s.fragment(), false)
	}
	return to
}

// probeBytes is how many bytes a probe carries. With each one that is not answered it becomes smaller: on a bad line large
// frames do not arrive at all, and as long as none does nobody says how many are lost.
func (s *sender) probeBytes() int {
	n := s.fragment()
	for i := 1; i < s.probes && n > minPayload; i++ {
		n /= 4
	}
	if n < minPayload {
		return minPayload
	}
	return n
}

func (l *Link) appendLost(to []byte, now time.Duration, most int, prompt bool) []byte {
	s := &l.sender
	r := s.lost.take(most)
	at := len(to)
	length := int(r.end - r.start)
	to = to[:at+frame.Size(length)]
	s.arena.copyOut(to[at+frame.HeaderBytes:at+frame.HeaderBytes+length], r.start)
	l.seal(to[at:], r.start, length, now, prompt || len(s.lost) == 0)
	l.counts.FramesResent++
	return to
}

// buildNew pulls new bytes into frames that lie in the arena, one behind the other, with an ACK in front if one is due.
func (l *Link) buildNew(now time.Duration) []byte {
	s := &l.sender
	size := l.pace.batch
	begin, ok := s.arena.reserve(size)
	if !ok {
		return nil
	}
	batch := s.arena.buf[begin : begin : begin+size]
	start := begin
	if l.receiver.due {
		batch = l.appendAck(batch)
	}
	for s.roomForNew() && l.user.Pending() > 0 {
		at := len(batch)
		length := s.fragment()
		if at+frame.Size(length) > size {
			if at > 0 && length <= size/4 {
				break // the next write takes it whole
			}
			if length = size - at - frame.Size(0) - 4; length < minPayload {
				break
			}
		}
		length = l.user.Pull(batch[at+frame.HeaderBytes : at+frame.HeaderBytes+length])
		if length == 0 {
			break
		}
		offset := s.next
		s.next += uint64(length)
		batch = batch[:at+frame.Size(length)]
		s.arena.keep(segment{offset, length, start, begin + at + frame.HeaderBytes}, begin+len(batch))
		start = begin + len(batch)
		l.seal(batch[at:], offset, length, now, false)
		l.counts.BytesSent += uint64(length)
	}
	return batch
}

// seal gives a data frame its number, and notes what is needed when its fate is known.
func (l *Link) seal(p []byte, offset uint64, length int, now time.Duration, prompt bool) {
	s := &l.sender
	if !s.outstandingBefore(offset) {
		s.progress = now
	}
	s.unprompted += length
	number := s.number
	s.number++
	s.flying += length
	more := l.user.Pending() > 0 || len(s.lost) > 0
	if !more || !s.room() || s.unprompted >= s.window.bytes/4 {
		prompt = true
	}
	if prompt {
		s.unprompted = 0
	}
	s.open[number%openFrames] = sent{offset, length, now, s.delivered, s.deliveredAt, more, prompt}
	h := frame.Header{
		Kind: frame.Data, FromGuest: l.settings.Guest, Prompt: prompt, Session: l.session.id,
		Number: number, Offset: offset, Span: int(number - s.oldest), Length: length,
	}
	frame.Seal(p, &h)
	l.counts.FramesSent++
	s.lastSent = now
	l.arm(s.probeAt(l.pace.probe))
}

// outstandingBefore says whether anything below the offset waits for its acknowledgement.
func (s *sender) outstandingBefore(offset uint64) bool { return s.una < offset || s.flying > 0 }

// acknowledged takes in an ACK.
func (l *Link) acknowledged(a *ack) error {
	s := &l.sender
	if a.next > s.next || a.highest >= s.number {
		return violatef(AckBeyondSent, "offset %d of %d, number %d of %d", a.next, s.next, a.highest, s.number-1)
	}
	now := l.clock.now()
	if a.next > s.una || a.highest >= s.oldest {
		s.progress, s.probes, s.probeDue = now, 0, false
	}
	if a.next > s.una {
		s.una = a.next
		s.lost.below(s.una)
	}
	missing := a.missing
	for ; s.oldest <= a.highest; s.oldest++ {
		for len(missing) > 0 && missing[0].first+uint64(missing[0].count) <= s.oldest {
			missing = missing[1:]
		}
		l.resolve(s.oldest, len(missing) > 0 && missing[0].first <= s.oldest)
		if s.oldest == a.highest {
			l.measure(&s.open[s.oldest%openFrames], now)
		}
	}
	return nil
}

// resolve settles a frame's fate.
func (l *Link) resolve(number uint64, lost bool) {
	s := &l.sender
	f := &s.open[number%openFrames]
	s.flying -= f.length
	s.payload.judge(lost)
	if !lost {
		s.delivered += uint64(f.length)
		return
	}
	l.counts.FramesLost++
	r := span{f.offset, f.offset + uint64(f.length)}
	if r.start < s.una {
		r.start = s.una
	}
	if r.start < r.end {
		s.lost.add(r)
	}
}

// measure learns from the newest frame that was acknowledged.
func (l *Link) measure(f *sent, now time.Duration) {
	s := &l.sender
	if f.prompt {
		s.window.time(now, now-f.at)
	}
	if f.limited {
		s.window.sample(f.delivered, s.delivered, now-f.deliveredAt)
	}
	s.deliveredAt = now
}

// encode recodes a batch's frames for a line of text.
func (l *Link) encode(batch []byte) []byte {
	if !l.settings.Text {
		return batch
	}
	l.coded = l.coded[:0]
	for len(batch) > 0 {
		size := frame.Size(int(binary.BigEndian.Uint16(batch[26:])))
		l.coded = frame.AppendText(l.coded, batch[:size])
		batch = batch[size:]
	}
	return l.coded
}
