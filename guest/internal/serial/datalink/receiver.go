package datalink

import "bandsox.dev/guest/internal/serial/frame"

const (
	// ackEveryBytes is received at most before an ACK is sent unasked.
	ackEveryBytes = 128 << 10
	// maxKeptRanges bounds the bookkeeping of what came ahead of a gap. A frame that would exceed it counts as missing.
	maxKeptRanges = 8192
	markedNumbers = 1024 // a power of two above frame.MaxSpan
)

// receiver puts the other side's frames in order.
type receiver struct {
	next uint64 // offset of the first byte that has not come
	// Fate of the numbers from low to highest: one mark for each that was received.
	low, highest uint64
	marks        [markedNumbers / 64]uint64
	// Bytes ahead of a gap lie in ahead at their offset modulo its length, and kept says which.
	ahead []byte
	kept  spans

	due     bool // an ACK is to be sent
	unacked int  // bytes received since the last one
	missing []numbers
}

func (r *receiver) reset() {
	*r = receiver{low: 1, ahead: r.ahead, kept: r.kept[:0], missing: r.missing[:0]}
}

func (r *receiver) received(number uint64) bool {
	return r.marks[number/64%uint64(len(r.marks))]&(1<<(number%64)) != 0
}

// mark takes note of a number above the highest. The line is a FIFO, so those in between are lost.
func (r *receiver) mark(number uint64, span int) {
	oldest := number - uint64(span)
	if oldest > r.low {
		r.low = oldest
	}
	from := r.highest + 1
	if from < r.low {
		from = r.low
	}
	for n := from; n < number; n++ {
		r.marks[n/64%uint64(len(r.marks))] &^= 1 << (n % 64)
	}
	if from < number {
		r.due = true // the sender can send them again at once
	}
	r.marks[number/64%uint64(len(r.marks))] |= 1 << (number % 64)
	r.highest = number
}

// take puts a data frame's bytes in their place, and hands over what is in order. It says whether the frame was new.
func (r *receiver) take(f *frame.Frame, deliver func([]byte) error) (bool, error) {
	if f.Length == 0 || f.Number == 0 {
		return false, violatef(DataEmpty, "%d bytes in frame %d", f.Length, f.Number)
	}
	if f.Prompt {
		r.due = true
	}
	if f.Number <= r.highest {
		return false, nil
	}
	end := f.Offset + uint64(f.Length)
	if end > r.next+maxWindow {
		return false, violatef(DataBeyondWindow, "bytes up to %d, while %d were next", end, r.next)
	}
	payload := f.Payload
	switch {
	case end <= r.next: // a probe that was not needed
	case f.Offset > r.next:
		if len(r.kept) >= maxKeptRanges {
			return false, nil // as if it had been lost: it comes again
		}
		r.keep(f.Offset, payload)
	default:
		if err := r.deliver(payload[r.next-f.Offset:], deliver); err != nil {
			return false, err
		}
		if err := r.deliverKept(deliver); err != nil {
			return false, err
		}
	}
	r.mark(f.Number, f.Span)
	if r.unacked += f.Length; r.unacked >= ackEveryBytes {
		r.due = true
	}
	return true, nil
}

func (r *receiver) deliver(p []byte, deliver func([]byte) error) error {
	r.next += uint64(len(p))
	return deliver(p)
}

// keep stores bytes that lie ahead of a gap.
func (r *receiver) keep(offset uint64, p []byte) {
	if r.ahead == nil {
		r.ahead = make([]byte, maxWindow)
	}
	r.kept.add(span{offset, offset + uint64(len(p))})
	n := copy(r.ahead[offset%maxWindow:], p)
	copy(r.ahead, p[n:])
}

// deliverKept hands over what has become in order.
func (r *receiver) deliverKept(deliver func([]byte) error) error {
	for len(r.kept) > 0 && r.kept[0].start <= r.next {
		end := r.kept[0].end
		for r.next < end {
			at := r.next % maxWindow
			n := end - r.next
			if n > maxWindow-at {
				n = maxWindow - at
			}
			if err := r.deliver(r.ahead[at:at+n], deliver); err != nil {
				return err
			}
		}
		r.kept.below(r.next)
	}
	return nil
}

// ack says what has been received, and takes it as said.
func (r *receiver) ack(a *ack) {
	r.due, r.unacked = false, 0
	a.next, a.highest = r.next, r.highest
	r.missing = r.missing[:0]
	for n := r.low; n <= r.highest; n++ {
		if r.received(n) {
			continue
		}
		last := len(r.missing) - 1
		if last >= 0 && r.missing[last].first+uint64(r.missing[last].count) == n {
			r.missing[last].count++
			continue
		}
		if len(r.missing) == maxRanges {
			// What does not fit is left to a later ACK. The number before this gap was received.
			a.highest = n - 1
			break
		}
		r.missing = append(r.missing, numbers{n, 1})
	}
	a.missing = r.missing
}
