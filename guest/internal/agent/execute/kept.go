package execute

import (
	"unsafe"

	"bandsox.dev/guest/internal/wire"
)

// maxKeptBytes is how much output that the host has not acknowledged is kept (PROTOCOL.md section 5). A host acknowledges every
// 256 KiB at the latest, and the runner adds a frame of each stream at a time.
const maxKeptBytes = 1 << 20

// kept is the end of a command's output, standard output and error together: what the host has not acknowledged. It remembers
// runs of bytes of one kind and not frames, since a command may write byte by byte.
type kept struct {
	buf   []byte // the bytes are buf[start:]
	start int
	runs  []run
	from  int64 // the offset of the first byte
}

// run is a number of bytes of one kind, one behind the other.
type run struct {
	bytes uint32
	kind  wire.Kind
}

// to is the offset behind the last byte, which is how much output there was in all.
func (k *kept) to() int64 { return k.from + int64(len(k.buf)-k.start) }

// add appends output.
func (k *kept) add(kind wire.Kind, data []byte) {
	if k.start > 0 && len(k.buf)+len(data) > cap(k.buf) {
		k.buf = k.buf[:copy(k.buf, k.buf[k.start:])]
		k.start = 0
	}
	k.buf = append(k.buf, data...)
	if last := len(k.runs) - 1; last >= 0 && k.runs[last].kind == kind {
		k.runs[last].bytes += uint32(len(data))
		return
	}
	k.runs = append(k.runs, run{bytes: uint32(len(data)), kind: kind})
}

// addFrames appends the output in whole frames; what is no output has no place in it.
func (k *kept) addFrames(frames []byte) {
	for len(frames) > 0 {
		kind, payload, rest := nextFrame(frames)
		if kind != wire.KindMessage {
			k.add(kind, payload)
		}
		frames = rest
	}
}

// forget drops what lies before an offset, which must not be above to.
func (k *kept) forget(offset int64) {
	bytes := int(offset - k.from)
	k.from = offset
	if k.start += bytes; k.start == len(k.buf) {
		k.buf, k.start = k.buf[:0], 0
	}
	for bytes > 0 {
		if first := int(k.runs[0].bytes); first > bytes {
			k.runs[0].bytes -= uint32(bytes)
			return
		}
		bytes -= int(k.runs[0].bytes)
		k.runs = k.runs[1:]
	}
}

// compact gives up the room for more output, and says how much is needed for what is kept.
func (k *kept) compact() int {
	k.buf, k.start = append([]byte(nil), k.buf[k.start:]...), 0
	k.runs = append([]run(nil), k.runs...)
	return cap(k.buf) + cap(k.runs)*int(unsafe.Sizeof(run{}))
}

// appendFrames appends the output from an offset on as frames, as far as dst has room for them, and gives the offset that follows.
func (k *kept) appendFrames(dst []byte, offset int64) ([]byte, int64) {
	at := k.start + int(offset-k.from)
	skip := int(offset - k.from)
	for _, r := range k.runs {
		left := int(r.bytes)
		if skip >= left {
			skip -= left
			continue
		}
		left -= skip
		skip = 0
		for left > 0 {
			size := left
			if size > frameBytes {
				size = frameBytes
			}
			if room := cap(dst) - len(dst) - wire.HeaderBytes; size > room {
				size = room
			}
			if size <= 0 {
				return dst, offset
			}
			header := len(dst)
			dst = dst[:header+wire.HeaderBytes]
			wire.PutHeader(dst[header:], r.kind, size)
			dst = append(dst, k.buf[at:at+size]...)
			at += size
			left -= size
			offset += int64(size)
		}
	}
	return dst, offset
}

// outputBytes counts the output in whole frames.
func outputBytes(frames []byte) int {
	bytes := 0
	for len(frames) > 0 {
		kind, payload, rest := nextFrame(frames)
		if kind != wire.KindMessage {
			bytes += len(payload)
		}
		frames = rest
	}
	return bytes
}

// nextFrame takes the first of the frames that the runner has made.
func nextFrame(frames []byte) (kind wire.Kind, payload, rest []byte) {
	kind, bytes := wire.ReadHeader(frames)
	end := wire.HeaderBytes + bytes
	return kind, frames[wire.HeaderBytes:end], frames[end:]
}
