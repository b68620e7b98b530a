package frame

import "testing"

// TestOneSilenceEndsEveryUnfinishedFrame has a line full of headers of frames that never come, as a hostile guest may leave it: what
// comes after the silence must not wait for one silence for each of them.
func TestOneSilenceEndsEveryUnfinishedFrame(t *testing.T) {
	header := Header{Kind: Data, FromGuest: true, Number: 1, Length: MaxPayload}
	unfinished := make([]byte, header.FrameBytes())
	Seal(unfinished, &header)
	d := NewDecoder()
	for i := 0; i < MaxFrameBytes/HeaderBytes-1; i++ {
		d.Advance(copy(d.Space(), unfinished[:HeaderBytes]))
	}
	var f Frame
	if d.Next(&f) || !d.Partial() {
		t.Fatal("an unfinished frame is not waited for")
	}
	d.GiveUp()
	if d.Next(&f) || d.Partial() {
		t.Fatal("frames that were cut are still waited for")
	}
	good := Header{Kind: Ack, FromGuest: true}
	p := make([]byte, good.FrameBytes())
	Seal(p, &good)
	d.Advance(copy(d.Space(), p))
	if !d.Next(&f) || f.Kind != Ack {
		t.Fatal("the frame behind the silence is not found")
	}
	if d.Damaged() != 1 || d.Last().Name != FrameCut {
		t.Errorf("%d damages, the last one %v", d.Damaged(), d.Last())
	}
}
