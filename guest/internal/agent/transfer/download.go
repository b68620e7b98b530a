package transfer

import (
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/wire"
)

const (
	// batchChunks is how many frames one read and one write carry.
	batchChunks = 4
	// frameBytes is a whole frame. A vsock packet holds 64 KiB (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE): payloads of 64 KiB, and five
	// bytes more, would make a packet of some bytes out of every write, and packets are what costs.
	frameBytes   = chunkBytes
	payloadBytes = frameBytes - wire.HeaderBytes
	// togetherBytes is what is copied to be sent in one write with what comes next.
	togetherBytes = 16 << 10
)

// downloadBuffers hold frames with room for their headers: a file is read behind the headers and written to the
// connection from there, without a copy.
var downloadBuffers = sync.Pool{New: func() interface{} {
	b := make([]byte, batchChunks*frameBytes)
	return &b
}}

// outgoing is a file that is being sent, on one connection or on several one after another.
type outgoing struct {
	path    string
	file    *os.File // its position is where the next bytes for the host are
	size    int64    // as announced: no more is sent
	mode    uint32
	mtimeMs int64
	sum     hash.Hash
	hashed  int64 // how much of the file sum covers: the most that was sent so far
}

// Download is one connection's part in a `download` operation. A goroutine of its own sends, while the connection's reader
// takes acknowledgements.
type Download struct {
	*outgoing
	held   *holder // nil: the transfer has no name
	pace   *Pace
	out    *wire.Writer
	hangUp func()
	// unsent are frames that wait for the next ones, at most togetherBytes: the whole answer about a small file is one write.
	unsent []byte

	mutex     sync.Mutex
	changed   *sync.Cond
	sent      int64
	acked     int64
	aborted   bool // the host gave it up
	cancelled bool // the connection has ended
	lost      bool // it has ended in a way that lets the transfer wait
	complete  bool // `complete` is sent, or about to be
	ended     bool
	sending   bool // the goroutine uses the file
	letGone   bool // the file is another's, or closed
}

// StartDownload opens a file, or goes on with one, and begins to send it at the pace of those on the same link. hangUp ends the connection.
func (r *Registry) StartDownload(message wire.Message, out *wire.Writer, pace *Pace, hangUp func()) (*Download, error) {
	d := &Download{out: out, hangUp: hangUp, pace: pace}
	d.changed = sync.NewCond(&d.mutex)
	held, _, err := r.take("download", message, hangUp)
	if err != nil {
		return nil, err
	}
	d.held = held
	known := held != nil && held.of.state != nil
	if known {
		d.outgoing = held.of.state.(*outgoing) // of the same kind, as take has checked
	} else if d.outgoing, err = openOutgoing(message); err != nil {
		held.drop()
		return nil, err
	}
	held.keep(d.outgoing)
	if err := d.begin(message.Integer("offset", 0), known); err != nil {
		d.letGo(false)
		return nil, err
	}
	go func() {
		defer console.Contain("sending a file", hangUp)
		defer d.settle()
		d.send()
	}()
	return d, nil
}

// Data is never right: in a download the guest sends.
func (d *Download) Data([]byte, int) error {
	return wire.Violatef(wire.MessageInvalid, "data in a download")
}

// Message takes acknowledgements and the end.
func (d *Download) Message(message wire.Message) error {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	switch message.Type {
	case "ack":
		offset := message.Integer("offset", 0)
		if offset < d.acked || offset > d.sent {
			return wire.Violatef(wire.MessageInvalid, "ack of %d after %d, with %d sent", offset, d.acked, d.sent)
		}
		d.acked = offset
		d.changed.Signal()
		return nil
	case "complete":
		if !d.complete {
			return wire.Violatef(wire.MessageInvalid, "complete before the guest's")
		}
		d.end() // what the host has written is the host's to judge
		return nil
	case "abort":
		if d.complete {
			d.end()
			return d.out.WriteMessage(failure.ToMessage(d.abortion()))
		}
		d.aborted = true
		d.changed.Signal()
		return nil
	}
	return wire.Violatef(wire.MessageInvalid, "%s in a download", message.Type)
}

// Ended says whether the operation is over.
func (d *Download) Ended() bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.ended
}

// end notes that nothing more is to come from the host, whose next operation may follow at once. The mutex is held, and all is sent but
// for `complete`, which does not need the file.
func (d *Download) end() {
	d.ended = true
	d.release(false)
}

// Cancel stops sending for good, when the connection has ended by the host's fault.
func (d *Download) Cancel() { d.leave(false) }

// Leave stops sending when the connection is lost. A transfer with a name waits for another one.
func (d *Download) Leave() { d.leave(true) }

// Confirm has nothing to forget: a download is over only with the host's word.
func (d *Download) Confirm() {}

func (d *Download) leave(lost bool) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if d.cancelled {
		return
	}
	d.cancelled = true
	d.lost = d.lost || lost
	d.changed.Signal()
	if !d.sending {
		d.release(lost && !d.ended)
	}
}

// settle is called when the goroutine no longer uses the file, after a panic too.
func (d *Download) settle() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.sending = false
	if d.held != nil && d.complete && !d.ended && !d.cancelled && !d.lost {
		return // the host's `complete` is to come, or the connection's end
	}
	d.release(d.lost && !d.ended)
}

// letGo is release without the mutex held.
func (d *Download) letGo(wait bool) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.release(wait)
}

// release gives the file away: to the registry, to wait for another connection, or for good. It may be called twice.
func (d *Download) release(wait bool) {
	if d.letGone {
		return
	}
	d.letGone = true
	switch {
	case d.held == nil:
		d.outgoing.release()
	case wait:
		d.held.park()
	default:
		d.held.drop()
	}
}

// CrossedBy says whether the host may have sent this before it saw the last answer.
func (d *Download) CrossedBy(frame wire.Frame) bool {
	return frame.Message.Type == "ack" || frame.Message.Type == "abort"
}

// openOutgoing opens the file of a `download`, and says what is to be announced of it.
func openOutgoing(message wire.Message) (*outgoing, error) {
	path := message.Text("path")
	sum, err := newChecksum(message.Text("checksum"))
	if err != nil {
		return nil, err
	}
	// O_NONBLOCK: opening a FIFO would wait for its writer, before one could see that it is none of ours.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, failure.Of(err, "cannot read %s", path)
	}
	o := &outgoing{path: path, file: file, sum: sum}
	if err := o.examine(); err != nil {
		o.release()
		return nil, err
	}
	return o, nil
}

func (o *outgoing) examine() error {
	info, err := o.file.Stat()
	if err != nil {
		return failure.Of(err, "cannot read %s", o.path)
	}
	if info.IsDir() {
		return failure.New(failure.IsADirectory, "cannot read %s: it is a folder", o.path)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return failure.New(failure.NotAFile, "cannot read %s: it is no regular file", o.path)
	}
	o.size, o.mode, o.mtimeMs = info.Size(), stat.Mode&0o7777, info.ModTime().UnixMilli()
	if o.size == 0 {
		if err := o.readPseudoFile(); err != nil {
			return failure.Of(err, "cannot read %s", o.path)
		}
	}
	return nil
}

// begin goes to where the host wants to go on, and prepares the answer.
func (d *Download) begin(offset int64, known bool) error {
	if offset > d.hashed {
		return wire.Violatef(wire.MessageInvalid, "a download at %d, with %d sent", offset, d.hashed)
	}
	if known { // also at 0: what was read may not have been sent
		if _, err := d.file.Seek(offset, io.SeekStart); err != nil {
			return failure.Of(err, "cannot read %s from %d on", d.path, offset)
		}
	}
	d.sent, d.acked, d.sending = offset, offset, true
	var err error
	d.unsent, err = wire.AppendMessage(nil, wire.DownloadReady{
		UploadReady: wire.UploadReady{Type: "ready", ChunkBytes: chunkBytes, WindowBytes: windowBytes, Offset: offset},
		Size:        d.size, Mode: d.mode, MtimeMs: d.mtimeMs,
	})
	return err
}

// send sends the file, to the size that was announced or to where it ends by then.
func (d *Download) send() {
	err := d.sendData()
	if err == nil {
		err = d.sendComplete()
	}
	if err == nil {
		return
	}
	d.mutex.Lock()
	gone := d.cancelled || d.lost
	d.ended = !gone // before the host can know
	d.mutex.Unlock()
	if gone {
		return
	}
	if err := d.out.WriteMessage(failure.ToMessage(err)); err != nil {
		d.hangUp()
	}
}

// write sends frames. A connection that does not take them is lost, which its reader must learn too.
func (d *Download) write(frames []byte) error {
	err := d.out.WriteFrames(frames)
	if err != nil {
		d.mutex.Lock()
		d.lost = true
		d.mutex.Unlock()
		d.hangUp()
	}
	return err
}

func (d *Download) sendData() error {
	pooled := downloadBuffers.Get().(*[]byte)
	defer downloadBuffers.Put(pooled)
	runner := d.pace.join()
	defer runner.leave()
	for {
		chunks := batchChunks
		if runner.crowded() {
			chunks = 1
		}
		n, err := d.readBatch(*pooled, chunks)
		if err != nil {
			return failure.Of(err, "cannot read %s", d.path)
		}
		// The host was told a size, and has made room for that: what was appended meanwhile is not sent.
		if left := d.size - d.sent; int64(n) > left {
			n = int(left)
		}
		if n == 0 {
			return nil
		}
		if err := d.waitForWindow(int64(n)); err != nil {
			return err
		}
		frames, err := d.frame(*pooled, n)
		if err != nil {
			return err
		}
		if len(d.unsent)+len(frames) <= togetherBytes {
			d.unsent = append(d.unsent, frames...)
			continue
		}
		if err := d.flush(); err != nil {
			return err
		}
		if err := d.write(frames); err != nil {
			return err
		}
		runner.moved(int64(n))
	}
}

func (d *Download) flush() error {
	if len(d.unsent) == 0 {
		return nil
	}
	frames := d.unsent
	d.unsent = nil
	return d.write(frames)
}

func (d *Download) sendComplete() error {
	checksum := digest(d.sum)
	d.mutex.Lock()
	if d.aborted || d.cancelled {
		d.mutex.Unlock()
		return d.abortion()
	}
	d.complete = true
	size := d.sent
	d.mutex.Unlock()
	frames, err := wire.AppendMessage(d.unsent, wire.Complete{Type: "complete", Size: size, Checksum: checksum})
	if err != nil {
		return err
	}
	d.unsent = nil
	return d.write(frames)
}

// readBatch reads the next bytes of the file into the places behind the headers, in one system call.
func (d *Download) readBatch(buf []byte, chunks int) (int, error) {
	var places [batchChunks]syscall.Iovec
	for i := range places {
		places[i].Base = &buf[i*frameBytes+wire.HeaderBytes]
		places[i].SetLen(payloadBytes)
	}
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_READV, d.file.Fd(), uintptr(unsafe.Pointer(&places)), uintptr(chunks))
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return 0, fmt.Errorf("cannot read: %w", errno)
		}
		return int(n), nil
	}
}

// frame writes the headers of n bytes that were read, the last that count as sent, and gives the part of the buffer that holds
// whole frames. What was hashed on an earlier connection is not hashed again: the checksum is of each byte once.
func (d *Download) frame(buf []byte, n int) ([]byte, error) {
	at := 0
	position := d.sent - int64(n)
	for n > 0 {
		size := n
		if size > payloadBytes {
			size = payloadBytes
		}
		wire.PutHeader(buf[at:], wire.KindData, size)
		at += wire.HeaderBytes
		at += size
		position += int64(size)
		if fresh := position - d.hashed; fresh > 0 {
			if _, err := d.sum.Write(buf[at-int(fresh) : at]); err != nil {
				return nil, failure.Of(err, "cannot compute a checksum")
			}
			d.hashed = position
		}
		n -= size
	}
	return buf[:at], nil
}

// waitForWindow waits until n more bytes may be under way, and counts them as sent.
func (d *Download) waitForWindow(n int64) error {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for d.sent+n-d.acked > windowBytes && !d.aborted && !d.cancelled {
		d.changed.Wait()
	}
	if d.aborted || d.cancelled {
		return d.abortion()
	}
	d.sent += n
	return nil
}

func (d *Download) abortion() error {
	return failure.New(failure.Aborted, "the download of %s was given up", d.path)
}

// release closes the file.
func (o *outgoing) release() {
	if err := o.file.Close(); err != nil {
		console.Printf("cannot close %s: %v", o.path, err)
	}
}
