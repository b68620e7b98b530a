package mux

// ring holds the bytes that a stream has received and not read. It grows with what is put in.
type ring struct {
	buf  []byte // its length is a power of two
	from int    // where the oldest byte lies
	n    int
}

const leastRing = 1 << 10

func (r *ring) put(p []byte) {
	if r.n+len(p) > len(r.buf) {
		r.grow(r.n + len(p))
	}
	at := (r.from + r.n) & (len(r.buf) - 1)
	n := copy(r.buf[at:], p)
	copy(r.buf, p[n:])
	r.n += len(p)
}

func (r *ring) grow(least int) {
	size := leastRing
	for size < least {
		size *= 2
	}
	buf := make([]byte, size)
	n := r.n
	r.get(buf[:n])
	r.buf, r.from, r.n = buf, 0, n
}

func (r *ring) get(p []byte) int {
	if len(p) > r.n {
		p = p[:r.n]
	}
	if len(p) == 0 {
		return 0
	}
	n := copy(p, r.buf[r.from:])
	n += copy(p[n:], r.buf)
	r.from = (r.from + n) & (len(r.buf) - 1)
	r.n -= n
	return n
}
