package frame

// Text-safe coding (SERIAL.md section 3): one byte RS, then the frame's bits, seven in each byte, under a set high bit. So a
// console's text, whose bytes are below 0x80, can be told from a frame at every single byte.

// RS begins a frame. No console prints it by itself.
const RS = 0x1E

const lineFeed = '\n'

// codedBytes is how many bytes follow the RS of a frame of so many.
func codedBytes(frame int) int { return (frame*8 + 6) / 7 }

// TextSize is the length of a frame of so much payload in text-safe coding.
func TextSize(payload int) int { return 1 + codedBytes(Size(payload)) }

// AppendText appends a sealed frame in text-safe coding.
func AppendText(to, sealed []byte) []byte {
	to = append(to, RS)
	var bits uint32
	held := 0
	for _, b := range sealed {
		bits = bits<<8 | uint32(b)
		held += 8
		for held >= 7 {
			held -= 7
			to = append(to, byte(bits>>held)|0x80)
		}
	}
	if held > 0 {
		to = append(to, byte(bits<<(7-held))|0x80)
	}
	return to
}

// Part says what a run of bytes in a mixed line is.
type Part int

const (
	PartText  Part = iota // the console's
	PartBegin             // one RS: a frame begins, and one that is not at its end is lost
	PartFrame             // a frame's coded bytes
	PartSkip              // remains of a damaged frame
)

// TextScanner parts a mixed line into its runs. It knows a frame's end from the frame's header, which it therefore checks.
type TextScanner struct {
	state  Part // PartText: outside a frame
	coded  int  // bytes of the frame so far
	want   int  // of how many; 0 until the header is complete
	first  [headerCoded]byte
	Header Header
	Why    *Damage // set when the header turns out to be damaged
}

// headerCoded coded bytes hold a whole header.
const headerCoded = (HeaderBytes*8 + 6) / 7

// Next takes the run at the beginning of p, which is not empty, and says what it is.
func (s *TextScanner) Next(p []byte) (Part, int) {
	if p[0] == RS {
		s.state, s.coded, s.want = PartFrame, 0, 0
		return PartBegin, 1
	}
	if s.state == PartText {
		n := 1
		for n < len(p) && p[n] != RS {
			n++
		}
		return PartText, n
	}
	if p[0] < 0x80 {
		n := 1
		for n < len(p) && p[n] < 0x80 && p[n] != RS && p[n-1] != lineFeed {
			n++
		}
		if s.state == PartSkip && p[n-1] == lineFeed {
			s.state = PartText
		}
		return PartText, n
	}
	most := len(p)
	if s.state == PartFrame {
		if left := s.left(); left < most {
			most = left
		}
	}
	n := 1
	for n < most && p[n] >= 0x80 {
		n++
	}
	if s.state == PartSkip {
		return PartSkip, n
	}
	s.take(p[:n])
	return PartFrame, n
}

// left is how many coded bytes the frame has to come, as far as is known.
func (s *TextScanner) left() int {
	if s.want == 0 {
		return headerCoded - s.coded
	}
	return s.want - s.coded
}

// take counts a frame's bytes and looks at its header as soon as it is there.
func (s *TextScanner) take(p []byte) {
	if s.want == 0 {
		copy(s.first[s.coded:], p)
	}
	s.coded += len(p)
	if s.want == 0 && s.coded == headerCoded {
		var header [HeaderBytes + 1]byte
		var d textBits
		d.decode(header[:0], s.first[:])
		if s.Why = parseHeader(header[:], &s.Header); s.Why != nil {
			s.state = PartSkip
			return
		}
		s.want = codedBytes(s.Header.FrameBytes())
	}
	if s.coded == s.want {
		s.state = PartText
	}
}

// textBits turns coded bytes back into a frame's.
type textBits struct {
	bits uint32
	held int
}

func (t *textBits) decode(to, coded []byte) []byte {
	for _, b := range coded {
		t.bits = t.bits<<7 | uint32(b&0x7F)
		t.held += 7
		if t.held >= 8 {
			t.held -= 8
			to = append(to, byte(t.bits>>t.held))
		}
	}
	return to
}

const textReadBytes = 4096

// textDecoder finds frames in a line that carries text-safe coding, and drops the text between and in them.
type textDecoder struct {
	damages
	scanner    TextScanner
	in         [textReadBytes]byte
	start, end int
	bits       textBits
	frame      []byte
	open       bool // a frame has begun and is neither complete nor known to be damaged
}

// NewTextDecoder makes a decoder for a line that also carries a console's text.
func NewTextDecoder() Decoder {
	return &textDecoder{frame: make([]byte, 0, MaxFrameBytes+1)}
}

func (d *textDecoder) Space() []byte {
	d.end = copy(d.in[:], d.in[d.start:d.end])
	d.start = 0
	return d.in[d.end:]
}

func (d *textDecoder) Advance(n int) { d.end += n }

func (d *textDecoder) Partial() bool { return d.open }

// GiveUp only stops the waiting: the next RS begins a frame wherever the one before has stopped.
func (d *textDecoder) GiveUp() { d.open = false }

func (d *textDecoder) Next(f *Frame) bool {
	for d.start < d.end {
		part, n := d.scanner.Next(d.in[d.start:d.end])
		run := d.in[d.start : d.start+n]
		d.start += n
		switch part {
		case PartBegin:
			if d.open {
				d.add(errFrameCut)
			}
			d.open, d.frame, d.bits = true, d.frame[:0], textBits{}
		case PartFrame:
			d.frame = d.bits.decode(d.frame, run)
			switch {
			case d.scanner.state == PartSkip:
				d.open = false
				d.add(d.scanner.Why)
			case d.scanner.state == PartText:
				d.open = false
				header := d.scanner.Header
				if !checkPayload(d.frame, &header) {
					d.add(errPayloadCheck)
					continue
				}
				f.Header = header
				f.Payload = d.frame[HeaderBytes : HeaderBytes+header.Length]
				return true
			}
		}
	}
	return false
}
