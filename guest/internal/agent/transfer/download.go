package transfer

import (
	"fmt"
	"hash"
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

// Download is one `download` operation. A goroutine of its own sends, while the connection's reader takes acknowledgements.
type Download struct {
	out    *wire.Writer
	path   string
	file   *os.File
	size   int64 // as announced: no more is sent
	sum    hash.Hash
	hangUp func()
	// unsent are frames that wait for the next ones, at most togetherBytes: the whole answer about a small file is one write.
	unsent []byte

	mutex     sync.Mutex
	changed   *sync.Cond
	sent      int64
	acked     int64
	aborted   bool // the host gave it up
	cancelled bool // the connection has ended
	complete  bool // `complete` is sent, or about to be
	ended     bool
}

// StartDownload opens a file and begins to send it. hangUp ends the connection.
func StartDownload(message wire.Message, out *wire.Writer, hangUp func()) (*Download, error) {
	path := message.Text("path")
	if message.Integer("offset", 0) > 0 {
		return nil, wire.Violatef(wire.MessageInvalid, "offset without the capability resume")
	}
	sum, err := newChecksum(message.Text("checksum"))
	if err != nil {
		return nil, err
	}
	// O_NONBLOCK: opening a FIFO would wait for its writer, before one could see that it is none of ours.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, failure.Of(err, "cannot read %s", path)
	}
	d := &Download{out: out, path: path, file: file, sum: sum, hangUp: hangUp}
	d.changed = sync.NewCond(&d.mutex)
	if err := d.prepareReady(); err != nil {
		d.closeFile()
		return nil, err
	}
	go func() {
		defer console.Contain("sending a file", hangUp)
		defer d.closeFile()
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
		d.ended = true // what the host has written is the host's to judge
		return nil
	case "abort":
		if d.complete {
			d.ended = true
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

// Cancel stops sending, when the connection has ended.
func (d *Download) Cancel() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.cancelled = true
	d.changed.Signal()
}

// CrossedBy says whether the host may have sent this before it saw the last answer.
func (d *Download) CrossedBy(frame wire.Frame) bool {
	return frame.Message.Type == "ack" || frame.Message.Type == "abort"
}

func (d *Download) prepareReady() error {
	info, err := d.file.Stat()
	if err != nil {
		return failure.Of(err, "cannot read %s", d.path)
	}
	if info.IsDir() {
		return failure.New(failure.IsADirectory, "cannot read %s: it is a folder", d.path)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return failure.New(failure.NotAFile, "cannot read %s: it is no regular file", d.path)
	}
	d.size = info.Size()
	if d.size == 0 {
		if err := d.readPseudoFile(); err != nil {
			return failure.Of(err, "cannot read %s", d.path)
		}
	}
	d.unsent, err = wire.AppendMessage(nil, wire.DownloadReady{
		UploadReady: wire.UploadReady{Type: "ready", ChunkBytes: chunkBytes, WindowBytes: windowBytes},
		Size:        d.size, Mode: stat.Mode & 0o7777, MtimeMs: info.ModTime().UnixMilli(),
	})
	return err
}

// send sends the file, to the size that was announced or to where it ends by then.
func (d *Download) send() {
	err := d.sendData()
	if err == nil {
		err = d.sendComplete()
	}
	if err != nil {
		d.mutex.Lock()
		cancelled := d.cancelled
		d.ended = true // before the host can know
		d.mutex.Unlock()
		if cancelled {
			return
		}
		if err := d.out.WriteMessage(failure.ToMessage(err)); err != nil {
			d.hangUp()
		}
	}
}

func (d *Download) sendData() error {
	pooled := downloadBuffers.Get().(*[]byte)
	defer downloadBuffers.Put(pooled)
	for {
		n, err := d.readBatch(*pooled)
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
		if err := d.out.WriteFrames(frames); err != nil {
			return err
		}
	}
}

func (d *Download) flush() error {
	if len(d.unsent) == 0 {
		return nil
	}
	frames := d.unsent
	d.unsent = nil
	return d.out.WriteFrames(frames)
}

func (d *Download) sendComplete() error {
	d.mutex.Lock()
	if d.aborted || d.cancelled {
		d.mutex.Unlock()
		return d.abortion()
	}
	d.complete = true
	size := d.sent
	d.mutex.Unlock()
	frames, err := wire.AppendMessage(d.unsent, wire.Complete{Type: "complete", Size: size, Checksum: digest(d.sum)})
	if err != nil {
		return err
	}
	d.unsent = nil
	return d.out.WriteFrames(frames)
}

// readBatch reads the next bytes of the file into the places behind the headers, in one system call.
func (d *Download) readBatch(buf []byte) (int, error) {
	var places [batchChunks]syscall.Iovec
	for i := range places {
		places[i].Base = &buf[i*frameBytes+wire.HeaderBytes]
		places[i].SetLen(payloadBytes)
	}
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_READV, d.file.Fd(), uintptr(unsafe.Pointer(&places)), batchChunks)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return 0, fmt.Errorf("cannot read: %w", errno)
		}
		return int(n), nil
	}
}

// frame writes the headers of n bytes that were read, and gives the part of the buffer that holds whole frames.
func (d *Download) frame(buf []byte, n int) ([]byte, error) {
	at := 0
	for n > 0 {
		size := n
		if size > payloadBytes {
			size = payloadBytes
		}
		wire.PutHeader(buf[at:], wire.KindData, size)
		at += wire.HeaderBytes
		if _, err := d.sum.Write(buf[at : at+size]); err != nil {
			return nil, failure.Of(err, "cannot compute a checksum")
		}
		at += size
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

func (d *Download) closeFile() {
	if err := d.file.Close(); err != nil {
		console.Printf("cannot close %s: %v", d.path, err)
	}
}
