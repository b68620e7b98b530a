// Package transfer moves whole files between the host and the guest's disk: PROTOCOL.md section 4.
package transfer

import (
	"errors"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/agent/users"
	"bandsox.dev/guest/internal/wire"
)

const (
	chunkBytes  = 65536
	windowBytes = 4 << 20
	// ackBytes is below the MiB that PROTOCOL.md asks for by more than a chunk, so that no chunk size oversteps it.
	ackBytes = 768 << 10
	// ackInterval: over a slow line the bytes above are long in coming, and a host that hears nothing gives up.
	ackInterval = time.Second
	// writeBackBytes: the kernel is told to write this much to the disk while more arrives, which leaves little for the
	// fsync at the end.
	writeBackBytes = 8 << 20
	// syncTellInterval: how often the host hears during a sync that it goes on (PROTOCOL.md section 4).
	syncTellInterval = 3 * time.Second
	defaultMode      = 0o644
	unknownSize      = -1
)

// incoming is a file that is being received, on one connection or on several one after another.
type incoming struct {
	target    target
	file      *os.File // nil: it is in place, or removed
	sum       hash.Hash
	size      int64 // to come, or unknownSize
	mode      int64 // or -1: not asked for
	owner     *users.User
	written   int64
	writtenTo int64 // what the kernel was told to write back
}

// Upload is one connection's part in an `upload` operation. All of it runs in the goroutine that reads from the connection: a
// second one that hashes or writes has nothing to run on in a guest with one CPU.
type Upload struct {
	*incoming           // nil once it is another's, or was never needed
	held      *holder   // nil: the transfer has no name, or is over
	over      *finished // the file was in place before this connection came
	registry  *Registry
	name      string
	path      string // as the host says it
	out       *wire.Writer
	acked     int64
	ackedAt   time.Time
	dropping  bool // failed: what comes is read and dropped until the host ends it
	ended     bool
}

// StartUpload opens a temporary file, or goes on with one, and lets the host send. hangUp ends the connection.
func (r *Registry) StartUpload(message wire.Message, out *wire.Writer, hangUp func()) (*Upload, error) {
	u := &Upload{out: out, registry: r, name: message.Text("transfer"), path: message.Text("path"), ackedAt: time.Now()}
	var err error
	if u.held, u.over, err = r.take("upload", message, hangUp); err != nil {
		return nil, err
	}
	switch {
	case u.over != nil:
		u.acked = u.over.size
	case u.held != nil && u.held.of.state != nil:
		u.incoming = u.held.of.state.(*incoming) // of the same kind, as take has checked
		u.acked = u.written
	default:
		if u.incoming, err = openIncoming(message); err != nil {
			u.held.drop()
			return nil, err
		}
		u.held.keep(u.incoming)
	}
	if offset := message.Integer("offset", 0); offset > u.acked {
		u.Cancel()
		return nil, wire.Violatef(wire.MessageInvalid, "an upload from %d on, with %d written", offset, u.acked)
	}
	err = out.WriteMessage(wire.UploadReady{Type: "ready", ChunkBytes: chunkBytes, WindowBytes: windowBytes, Offset: u.acked})
	if err != nil {
		u.Leave()
		return nil, err
	}
	return u, nil
}

// openIncoming opens a temporary file beside the place that an `upload` names.
func openIncoming(message wire.Message) (*incoming, error) {
	path := message.Text("path")
	in := &incoming{size: message.Integer("size", unknownSize), mode: message.Integer("mode", -1)}
	var err error
	if in.sum, err = newChecksum(message.Text("checksum")); err != nil {
		return nil, err
	}
	if message.Has("user") {
		owner, err := users.Lookup(message.Text("user"))
		if err != nil {
			return nil, failure.Of(err, "cannot give %s to %q", path, message.Text("user"))
		}
		in.owner = &owner
	}
	if in.target, err = findTarget(path); err != nil {
		return nil, err
	}
	in.file, err = createTemporary(in.target.path)
	if errors.Is(err, fs.ErrNotExist) && message.Flag("makeParents", false) {
		folder, _ := split(in.target.path)
		if err = os.MkdirAll(filepath.Clean(folder), 0o755); err == nil {
			in.file, err = createTemporary(in.target.path)
		}
	}
	if err != nil {
		return nil, failure.Of(err, "cannot write %s", path)
	}
	return in, nil
}

// Data writes a piece of the file.
func (u *Upload) Data(payload []byte, rest int) error {
	if u.dropping {
		return nil
	}
	if u.over != nil || u.size != unknownSize && u.written+int64(len(payload)) > u.size {
		u.Cancel()
		return wire.Violatef(wire.MessageInvalid, "data beyond the size of the file")
	}
	if _, err := u.sum.Write(payload); err != nil {
		return u.fail(failure.Of(err, "cannot compute a checksum"), true)
	}
	if _, err := u.file.Write(payload); err != nil {
		return u.fail(failure.Of(err, "cannot write %s after %d bytes", u.target.path, u.written), true)
	}
	u.written += int64(len(payload))
	u.startWriteBack()
	if now := time.Now(); u.written-u.acked >= ackBytes || now.Sub(u.ackedAt) >= ackInterval {
		u.ackedAt = now
	} else {
		return nil
	}
	u.acked = u.written
	return u.out.WriteMessage(wire.Ack{Type: "ack", Offset: u.written})
}

// Message takes the end of the file, or of the attempt.
func (u *Upload) Message(message wire.Message) error {
	switch {
	case message.Type != "complete" && message.Type != "abort":
		u.Cancel()
		return wire.Violatef(wire.MessageInvalid, "%s in an upload", message.Type)
	case u.dropping:
		u.ended = true // the host has heard of the error already
		return nil
	case message.Type == "abort":
		return u.fail(failure.New(failure.Aborted, "the upload of %s was given up", u.path), false)
	}
	size, checksum := message.Integer("size", 0), message.Text("checksum")
	if err := u.complete(size, checksum); err != nil {
		return u.fail(err, false)
	}
	u.ended = true
	return u.out.WriteMessage(wire.Complete{Type: "complete", Size: size, Checksum: checksum})
}

// Ended says whether the operation is over.
func (u *Upload) Ended() bool { return u.ended }

// Cancel removes what was made, when the connection has ended by the host's fault. It may be called twice.
func (u *Upload) Cancel() { u.letGo(false) }

// Leave is called when the connection is lost. A transfer with a name waits for another one. It may be called twice.
func (u *Upload) Leave() { u.letGo(true) }

// Confirm is called when the host has read the last answer.
func (u *Upload) Confirm() {
	if u.name != "" {
		u.registry.forget(u.name)
	}
}

// CrossedBy says whether the host may have sent this before it saw the last answer.
func (u *Upload) CrossedBy(frame wire.Frame) bool { return frame.Message.Type == "abort" }

// letGo gives the file away: to the registry, to wait for another connection, or for good.
func (u *Upload) letGo(wait bool) {
	switch {
	case u.incoming == nil:
	case u.held == nil:
		u.incoming.release()
	case wait:
		u.held.park()
	default:
		u.held.drop()
	}
	u.incoming, u.held = nil, nil
}

// complete puts the file in place, or sees that the host means the one that is in place already.
func (u *Upload) complete(size int64, checksum string) error {
	if u.over != nil {
		if u.over.size != size {
			return failure.New(failure.SizeMismatch, "cannot confirm an upload: %d bytes came, %d were meant", u.over.size, size)
		}
		if u.over.checksum != checksum {
			return failure.New(failure.ChecksumMismatch, "cannot confirm an upload: checksum %s came out, %s was meant", u.over.checksum, checksum)
		}
		return nil
	}
	if err := u.finish(size, checksum); err != nil {
		return err
	}
	u.held.finish(size, checksum)
	u.incoming, u.held = nil, nil
	return nil
}

// finish compares, syncs and renames. Mode and owner are set before the sync, so that they are durable too, and before the
// rename, so that nobody sees the file without them.
func (u *Upload) finish(size int64, checksum string) error {
	path := u.target.path
	if u.written != size || u.size != unknownSize && u.size != size {
		return failure.New(failure.SizeMismatch, "cannot write %s: %d bytes came, %d were meant", path, u.written, size)
	}
	if computed := digest(u.sum); computed != checksum {
		return failure.New(failure.ChecksumMismatch, "cannot write %s: checksum %s came out, %s was meant", path, computed, checksum)
	}
	temporary := u.file.Name()
	uid, gid, mode := u.attributes()
	if os.Geteuid() == 0 {
		if err := u.file.Chown(uid, gid); err != nil {
			return failure.Of(err, "cannot set the owner of %s", path)
		}
	}
	// After chown, which takes set-user-ID away. Not File.Chmod: Go's mode bits are not the kernel's.
	if err := syscall.Fchmod(int(u.file.Fd()), mode); err != nil {
		return failure.Of(err, "cannot set the mode of %s", path)
	}
	if err := u.sync(); err != nil {
		return failure.Of(err, "cannot sync %s", path)
	}
	if err := u.file.Close(); err != nil {
		return failure.Of(err, "cannot write %s", path)
	}
	if err := os.Rename(temporary, path); err != nil {
		return failure.Of(err, "cannot put %s in place", path)
	}
	u.file = nil // from here on there is nothing to remove
	if err := syncFolder(path); err != nil {
		return failure.Of(err, "cannot sync the folder of %s", path)
	}
	return nil
}

// sync writes the file to the disk, which may take long, and tells the host from time to time that it goes on.
func (u *Upload) sync() error {
	done := make(chan struct{})
	told := make(chan error, 1)
	go func() {
		ticks := time.NewTicker(syncTellInterval)
		defer ticks.Stop()
		for {
			select {
			case <-done:
				told <- nil
				return
			case <-ticks.C:
				if err := u.out.WriteMessage(wire.Ack{Type: "ack", Offset: u.acked}); err != nil {
					told <- err
					return
				}
			}
		}
	}()
	err := u.file.Sync()
	close(done)
	tellErr := <-told
	if err == nil && u.held == nil {
		return tellErr // nobody would hear of the file; by a name the host can ask again
	}
	return err
}

// attributes are the new file's owner and mode: what was asked for, else what the old file has, else root and 0644.
func (in *incoming) attributes() (uid, gid int, mode uint32) {
	mode = defaultMode
	if current := in.target.current; current != nil {
		uid, gid, mode = int(current.Uid), int(current.Gid), current.Mode&0o7777
	}
	if in.owner != nil {
		uid, gid = int(in.owner.UID), int(in.owner.GID)
	}
	if in.mode >= 0 {
		mode = uint32(in.mode)
	}
	return uid, gid, mode
}

// startWriteBack lets the disk work while more arrives. It is a hint: fsync at the end reports what went wrong.
func (in *incoming) startWriteBack() {
	const write = 2 // SYNC_FILE_RANGE_WRITE, sync_file_range(2)
	if in.written-in.writtenTo < writeBackBytes {
		return
	}
	if err := syscall.SyncFileRange(int(in.file.Fd()), in.writtenTo, in.written-in.writtenTo, write); err != nil && err != syscall.ESPIPE {
		console.Printf("cannot start write-back: %v", err)
	}
	in.writtenTo = in.written
}

// fail removes what was made and tells the host, which is still sending when dropping is true.
func (u *Upload) fail(err error, dropping bool) error {
	u.letGo(false)
	u.dropping = dropping
	u.ended = !dropping
	return u.out.WriteMessage(failure.ToMessage(err))
}

// release removes the temporary file.
func (in *incoming) release() {
	if in.file == nil {
		return
	}
	name := in.file.Name()
	if err := in.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		console.Printf("cannot close %s: %v", name, err) // it is removed all the same
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		console.Printf("cannot remove %s: %v", name, err)
	}
	in.file = nil
}
