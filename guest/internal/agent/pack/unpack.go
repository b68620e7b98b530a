package pack

import (
	"bufio"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/cespare/xxhash/v2"

	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/tarstream"
)

const (
	// trailerWord begins what the host writes behind the end of a checked stream: the sum of all before it.
	trailerWord  = "xxh64 "
	trailerBytes = len(trailerWord) + 16 + 1
	maxPathBytes = 4096
)

// hashing sums what is read, and no more than that.
type hashing struct {
	from  io.Reader
	hash  hash.Hash64
	bytes int64
}

func (h *hashing) Read(data []byte) (int, error) {
	n, err := h.from.Read(data)
	h.bytes += int64(n)
	_, _ = h.hash.Write(data[:n]) // a hash takes everything
	return n, err
}

// unpacker makes the files of a stream in a folder of its own, beside where they shall be. Until the stream has come whole, nothing
// of it is seen; and nothing on the way to a file was there before, or is followed when it is a symbolic link.
type unpacker struct {
	stage  *stage
	report Report
	isRoot bool
	buffer []byte
	// open are the folders from the stage down to where the last file was made.
	open []openedFolder
	// folders get their attributes at the end, when nothing changes in them any more.
	folders []folderAttributes
}

type openedFolder struct {
	name string
	fd   int
}

type folderAttributes struct {
	path  []string
	entry *tarstream.Entry
}

func unpack(a arguments, stdin io.Reader) (*Report, error) {
	to, err := openTarget(a.to)
	if err != nil {
		return nil, err
	}
	defer to.close()
	to.sweep()
	made, err := newStage(to)
	if err != nil {
		return nil, err
	}
	defer made.remove()
	u := &unpacker{stage: made, isRoot: os.Geteuid() == 0, buffer: make([]byte, bufferBytes), report: Report{Skipped: []Skipped{}}}
	defer u.closeFrom(0)
	if err := u.stream(stdin, a.checked); err != nil {
		return nil, err
	}
	if err := u.finishFolders(); err != nil {
		return nil, err
	}
	u.closeFrom(0)
	if err := made.commit(); err != nil {
		return nil, err
	}
	return &u.report, nil
}

func (u *unpacker) stream(stdin io.Reader, checked bool) error {
	source := bufio.NewReaderSize(stdin, bufferBytes)
	counted := &hashing{from: source, hash: xxhash.New()}
	reader := tarstream.NewReader(counted)
	for {
		entry, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return streamFailure(err)
		}
		if err := u.entry(entry, reader); err != nil {
			return err
		}
	}
	u.report.StreamBytes, u.report.XXH64 = counted.bytes, hex.EncodeToString(counted.hash.Sum(nil))
	if checked {
		return checkTrailer(source, u.report.XXH64)
	}
	_, err := io.Copy(io.Discard, source) // padding to whole records; whoever writes it must not be stopped
	return err
}

func checkTrailer(source io.Reader, sum string) error {
	trailer := make([]byte, trailerBytes)
	if _, err := io.ReadFull(source, trailer); err != nil {
		return failure.New(failure.SizeMismatch, "cannot copy: the stream is cut short before its checksum")
	}
	if told := string(trailer); told != trailerWord+sum+"\n" {
		return failure.New(failure.ChecksumMismatch, "cannot copy: the stream's checksum is %s, and it says %.40q", sum, told)
	}
	return nil
}

func streamFailure(err error) error {
	if errors.Is(err, tarstream.ErrInvalid) {
		return failure.New(failure.BadRequest, "cannot copy: %v", err)
	}
	return err
}

func (u *unpacker) entry(e *tarstream.Entry, content io.Reader) error {
	parts, err := partsOf(e.Path)
	if err != nil {
		return entryFailure(err, e)
	}
	if e.Kind == tarstream.Folder {
		u.report.Folders++
		if err := u.enter(parts); err != nil {
			return entryFailure(err, e)
		}
		if len(u.folders) == 0 || !samePath(u.folders[len(u.folders)-1].path, parts) {
			u.folders = append(u.folders, folderAttributes{parts, e})
		}
		return nil
	}
	folder, name, err := u.parentOf(parts)
	if err != nil {
		return entryFailure(err, e)
	}
	if err := u.clear(folder, name); err != nil {
		return entryFailure(err, e)
	}
	switch e.Kind {
	case tarstream.File:
		return u.file(e, folder, name, content)
	case tarstream.HardLink:
		u.report.Links++
		return entryFailure(u.hardLink(e, folder, name, parts), e)
	case tarstream.Symlink:
		u.report.Links++
		return entryFailure(u.finished(symlinkAt(e.Target, folder, name), e, folder, name), e)
	}
	u.report.Others++
	kinds := map[byte]uint32{tarstream.FIFO: syscall.S_IFIFO, tarstream.CharDevice: syscall.S_IFCHR, tarstream.BlockDevice: syscall.S_IFBLK}
	err = syscall.Mknodat(folder, name, kinds[e.Kind]|0o600, makeDevice(e.Major, e.Minor))
	if err == nil && u.isRoot {
		err = chownAt(folder, name, e.UID, e.GID)
	}
	if err == nil {
		err = syscall.Fchmodat(folder, name, e.Mode, 0)
	}
	if err == nil {
		err = setTimeAt(folder, name, e.Seconds, e.Nanoseconds)
	}
	return entryFailure(err, e)
}

// finished gives owner and time to what was just made, unless that failed.
func (u *unpacker) finished(made error, e *tarstream.Entry, folder int, name string) error {
	if made != nil {
		return made
	}
	if u.isRoot {
		if err := chownAt(folder, name, e.UID, e.GID); err != nil {
			return err
		}
	}
	return setTimeAt(folder, name, e.Seconds, e.Nanoseconds)
}

// clear removes a file of the same name: the later one of a stream wins. A folder stays, and what comes then fails.
func (u *unpacker) clear(folder int, name string) error {
	err := removeAt(folder, name, 0)
	if err == syscall.ENOENT {
		return nil
	}
	return err
}

func (u *unpacker) file(e *tarstream.Entry, folder int, name string, content io.Reader) error {
	fd, err := openAt(folder, name, syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return entryFailure(err, e)
	}
	err = u.fill(fd, e, content)
	if closeErr := syscall.Close(fd); err == nil {
		err = closeErr
	}
	u.report.Files++
	u.report.Bytes += e.Stored()
	return entryFailure(err, e)
}

func (u *unpacker) fill(fd int, e *tarstream.Entry, content io.Reader) error {
	extents := e.Extents
	if extents == nil {
		extents = []tarstream.Extent{{Length: e.Size}}
	}
	for _, extent := range extents {
		for offset, end := extent.Offset, extent.Offset+extent.Length; offset < end; {
			part := u.buffer
			if left := end - offset; left < int64(len(part)) {
				part = part[:left]
			}
			n, err := io.ReadFull(content, part)
			if err != nil {
				return streamFailure(err)
			}
			if err := writeAt(fd, part[:n], offset); err != nil {
				return err
			}
			offset += int64(n)
		}
	}
	if e.Extents != nil {
		if err := syscall.Ftruncate(fd, e.Size); err != nil {
			return err
		}
	}
	return u.attributes(fd, e)
}

func writeAt(fd int, data []byte, offset int64) error {
	for len(data) > 0 {
		n, err := syscall.Pwrite(fd, data, offset)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		data, offset = data[n:], offset+int64(n)
	}
	return nil
}

// attributes sets owner first, which takes set-id bits and capabilities away, and the time last.
func (u *unpacker) attributes(fd int, e *tarstream.Entry) error {
	if u.isRoot {
		if err := syscall.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
			return err
		}
	}
	if err := syscall.Fchmod(fd, e.Mode); err != nil {
		return err
	}
	for name, value := range e.Xattrs {
		if !isKept(name) {
			continue
		}
		err := writeXattr(fd, name, value)
		if err == syscall.ENOTSUP || err == syscall.EPERM {
			u.report.skip(e.Path, "its attribute "+printable(name)+", which cannot be set there")
			continue
		}
		if err != nil {
			return err
		}
	}
	return setTime(fd, e.Seconds, e.Nanoseconds)
}

func (u *unpacker) hardLink(e *tarstream.Entry, folder int, name string, own []string) error {
	target, err := partsOf(e.Target)
	if err != nil {
		return err
	}
	// The way there closes the way here.
	here, err := openAt(folder, ".", openFolder, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(here)
	there, targetName, err := u.lookup(target)
	if err != nil {
		return err
	}
	return linkAt(there, targetName, here, name)
}

// partsOf takes a path apart, and refuses one that leads out.
func partsOf(name string) ([]string, error) {
	if len(name) > maxPathBytes {
		return nil, errors.New("its path is too long")
	}
	parts := []string{root}
	for _, part := range strings.Split(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return nil, errors.New("its path leads out of the copy")
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return nil, errors.New("it lies too deep")
	}
	return parts, nil
}

func samePath(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// parentOf opens the folder that the last part lies in. The parts begin with the stage's root.
func (u *unpacker) parentOf(parts []string) (folder int, name string, err error) {
	if err := u.enter(parts[:len(parts)-1]); err != nil {
		return 0, "", err
	}
	return u.here(), parts[len(parts)-1], nil
}

// lookup is parentOf where nothing may be missing.
func (u *unpacker) lookup(parts []string) (folder int, name string, err error) {
	if err := u.walk(parts[:len(parts)-1], false); err != nil {
		return 0, "", err
	}
	return u.here(), parts[len(parts)-1], nil
}

func (u *unpacker) here() int {
	if len(u.open) == 0 {
		return u.stage.fd
	}
	return u.open[len(u.open)-1].fd
}

func (u *unpacker) enter(parts []string) error { return u.walk(parts, true) }

// walk opens a folder of the stage. What the last path has in common with this one is open already.
func (u *unpacker) walk(parts []string, make bool) error {
	common := 0
	for common < len(parts) && common < len(u.open) && parts[common] == u.open[common].name {
		common++
	}
	u.closeFrom(common)
	for _, part := range parts[common:] {
		fd, err := openAt(u.here(), part, openFolder, 0)
		if err == syscall.ENOENT && make {
			if err = syscall.Mkdirat(u.here(), part, 0o755); err == nil {
				fd, err = openAt(u.here(), part, openFolder, 0)
			}
		}
		if err == syscall.ELOOP || err == syscall.ENOTDIR {
			return &failure.Error{Code: failure.NotADirectory, Message: "its path leads through " + printable(part) + ", which is no folder"}
		}
		if err != nil {
			return err
		}
		u.open = append(u.open, openedFolder{part, fd})
	}
	return nil
}

func (u *unpacker) closeFrom(depth int) {
	for _, folder := range u.open[depth:] {
		_ = syscall.Close(folder.fd) // opened for reading: there is nothing to lose
	}
	u.open = u.open[:depth]
}

// finishFolders goes from the last to the first, so that one that nobody may enter any more is left by then.
func (u *unpacker) finishFolders() error {
	for i := len(u.folders) - 1; i >= 0; i-- {
		folder := u.folders[i]
		if err := u.walk(folder.path, false); err != nil {
			return entryFailure(err, folder.entry)
		}
		if err := u.attributes(u.here(), folder.entry); err != nil {
			return entryFailure(err, folder.entry)
		}
		u.closeFrom(len(folder.path) - 1)
	}
	return nil
}

func entryFailure(err error, e *tarstream.Entry) error {
	if err == nil {
		return nil
	}
	var known *failure.Error
	if errors.As(err, &known) && known.Code == failure.BadRequest {
		return err
	}
	code := failure.Of(err, "").Code
	if code == failure.Internal {
		code = failure.BadRequest
		var errno syscall.Errno
		if errors.As(err, &errno) {
			code = failure.Internal
		}
	}
	return &failure.Error{Code: code, Message: "cannot make " + printable(path.Clean(e.Path)), Cause: err}
}
