package pack

import (
	"bufio"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"path"
	"sort"
	"strings"
	"syscall"

	"github.com/cespare/xxhash/v2"

	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/glob"
	"bandsox.dev/guest/internal/tarstream"
)

const (
	bufferBytes = 262144
	seekData    = 3 // SEEK_DATA and SEEK_HOLE of lseek(2)
	seekHole    = 4
	statUnit    = 512 // of st_blocks
	// maxDepth bounds the descriptors that are open at once.
	maxDepth = 512
)

// pseudo are the file systems that the kernel makes up: their sizes are not true, and some of their files never end. By
// linux/magic.h.
var pseudo = map[int64]string{
	0x9fa0: "proc", 0x62656572: "sysfs", 0x64626720: "debugfs", 0x74726163: "tracefs", 0x27e0eb: "cgroup", 0x63677270: "cgroup2",
	0x1cd1: "devpts", 0x73636673: "securityfs", 0x6165676c: "pstore", 0xcafe4a11: "bpf", 0x19800202: "mqueue", 0x42494e4d: "binfmt_misc",
}

// digesting counts and sums what passes.
type digesting struct {
	to    io.Writer
	hash  hash.Hash64
	bytes int64
}

func (d *digesting) Write(data []byte) (int, error) {
	n, err := d.to.Write(data)
	d.bytes += int64(n)
	_, _ = d.hash.Write(data[:n]) // a hash takes everything
	return n, err
}

func (d *digesting) sum() string { return hex.EncodeToString(d.hash.Sum(nil)) }

type packer struct {
	out       *tarstream.Writer
	report    Report
	selection *glob.Selection
	as        string
	buffer    []byte
	// seen are files with several names: the first one is what the others link to.
	seen map[[2]uint64]*linked
	// waiting are folders above that are taken only when something below is.
	waiting []*tarstream.Entry
	// keeps says which extended attributes are taken.
	keeps func(name string) bool
	// refuses says why a file is not taken; nil takes them all.
	refuses func(at place, stat syscall.Stat_t) string
}

// linked is a file with several names.
type linked struct {
	names uint64
	paths []string // as they are in the stream
}

func pack(a arguments, stdout io.Writer) (*Report, error) {
	selection, err := glob.NewSelection(a.include, a.exclude)
	if err != nil {
		return nil, failure.New(failure.BadRequest, "%v", err)
	}
	p := newPacker(selection, a.as)
	return p.write(stdout, func() error { return p.top(a.path) })
}

func newPacker(selection *glob.Selection, as string) *packer {
	if as == "" {
		as = "."
	}
	return &packer{
		selection: selection, as: as, buffer: make([]byte, bufferBytes), seen: map[[2]uint64]*linked{}, keeps: isKept,
		report: Report{Skipped: []Skipped{}},
	}
}

// write makes the stream, whose entries are take's.
func (p *packer) write(stdout io.Writer, take func() error) (*Report, error) {
	stream := &digesting{to: stdout, hash: xxhash.New()}
	buffered := bufio.NewWriterSize(stream, bufferBytes)
	p.out = tarstream.NewWriter(buffered)
	if err := take(); err != nil {
		return nil, err
	}
	if err := p.out.Close(); err != nil {
		return nil, err
	}
	if err := buffered.Flush(); err != nil {
		return nil, err
	}
	p.report.StreamBytes, p.report.XXH64 = stream.bytes, stream.sum()
	return &p.report, nil
}

// top packs what was named. A symbolic link is packed as one, unless something stands behind it.
func (p *packer) top(named string) error {
	flags := openFolder &^ syscall.O_NOFOLLOW
	parent, name := path.Split(strings.TrimRight(named, "/"))
	if name == "" || name == "." || name == ".." || strings.HasSuffix(named, "/") {
		parent, name = named, "."
	}
	if len(named) >= syscall.PathMax {
		return failure.New(failure.PathInvalid, "cannot copy %.100q…: the path is too long", named)
	}
	folder, err := openAt(0, parent, flags, 0) // absolute, so the descriptor is not looked at
	if err != nil {
		return failure.Of(err, "cannot copy %s", named)
	}
	defer syscall.Close(folder)
	stat, err := statAt(folder, name)
	if err != nil {
		return failure.Of(err, "cannot copy %s", named)
	}
	if kind := stat.Mode & syscall.S_IFMT; kind == syscall.S_IFSOCK {
		return failure.New(failure.NotAFile, "cannot copy %s: it is a socket", named)
	}
	return p.file(place{folder: folder, name: name, full: strings.TrimSuffix(named, "/."), verdict: p.selection.Top()}, stat)
}

// place is where a file lies.
type place struct {
	folder int
	name   string
	// full is its path in the guest; below its path below what was named, "" for that itself.
	full, below string
	verdict     glob.Verdict
	depth       int
	device      uint64
}

func (p *packer) inStream(below string) string {
	switch {
	case below == "":
		return p.as
	case p.as == ".":
		return below
	}
	return p.as + "/" + below
}

func (p *packer) entry(below string, stat syscall.Stat_t) *tarstream.Entry {
	return &tarstream.Entry{
		Path: p.inStream(below), Mode: stat.Mode & 0o7777, UID: int64(stat.Uid), GID: int64(stat.Gid),
		Seconds: stat.Mtim.Sec, Nanoseconds: stat.Mtim.Nsec,
	}
}

func (p *packer) file(at place, stat syscall.Stat_t) error {
	if p.refuses != nil {
		if reason := p.refuses(at, stat); reason != "" {
			p.report.skip(at.full, reason)
			return nil
		}
	}
	e := p.entry(at.below, stat)
	var err error
	switch stat.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		return p.folder(at, e)
	case syscall.S_IFREG:
		return p.regular(at, e, stat)
	case syscall.S_IFLNK:
		e.Kind = tarstream.Symlink
		if e.Target, err = readLinkAt(at.folder, at.name); err != nil {
			return p.lostOr(err, at)
		}
		p.report.Links++
	case syscall.S_IFIFO:
		e.Kind = tarstream.FIFO
		p.report.Others++
	case syscall.S_IFCHR, syscall.S_IFBLK:
		e.Kind = tarstream.CharDevice
		if stat.Mode&syscall.S_IFMT == syscall.S_IFBLK {
			e.Kind = tarstream.BlockDevice
		}
		e.Major, e.Minor = devMajor(uint64(stat.Rdev)), devMinor(uint64(stat.Rdev))
		p.report.Others++
	default:
		p.report.skip(at.full, "a socket")
		return nil
	}
	return p.begin(e)
}

// begin writes an entry behind the folders that were waiting for one.
func (p *packer) begin(e *tarstream.Entry) error {
	for _, folder := range p.waiting {
		p.report.Folders++
		if err := p.out.Begin(folder); err != nil {
			return err
		}
	}
	p.waiting = p.waiting[:0]
	return p.out.Begin(e)
}

func (p *packer) folder(at place, e *tarstream.Entry) error {
	if at.depth > maxDepth {
		return failure.New(failure.PathInvalid, "cannot copy %.200s…: it lies more than %d folders deep", at.full, maxDepth)
	}
	fd, err := openAt(at.folder, at.name, openFolder, 0)
	if err != nil {
		return p.lostOr(err, at)
	}
	defer syscall.Close(fd)
	e.Kind = tarstream.Folder
	if e.Xattrs, err = readXattrs(fd, p.keeps); err != nil {
		return failure.Of(err, "cannot read the attributes of %s", at.full)
	}
	if at.below != "" && at.verdict != glob.In {
		p.waiting = append(p.waiting, e)
	} else {
		p.report.Folders++
		if err := p.begin(e); err != nil {
			return err
		}
	}
	waiting := len(p.waiting)
	if err := p.content(at, fd); err != nil {
		return err
	}
	if len(p.waiting) >= waiting && at.verdict != glob.In && waiting > 0 {
		p.waiting = p.waiting[:waiting-1] // nothing in it was taken
	}
	return nil
}

func (p *packer) content(at place, fd int) error {
	var self syscall.Stat_t
	if err := syscall.Fstat(fd, &self); err != nil {
		return failure.Of(err, "cannot copy %s", at.full)
	}
	if uint64(self.Dev) != at.device {
		var system syscall.Statfs_t
		if err := syscall.Fstatfs(fd, &system); err != nil {
			return failure.Of(err, "cannot copy %s", at.full)
		}
		if name, is := pseudo[int64(system.Type)]; is {
			p.report.skip(at.full, "what is in a file system of the kernel's own: "+name)
			return nil
		}
	}
	list, err := names(fd)
	if err != nil {
		return failure.Of(err, "cannot list %s", at.full)
	}
	sort.Strings(list)
	for _, name := range list {
		inner := place{
			folder: fd, name: name, full: strings.TrimSuffix(at.full, "/") + "/" + name, below: name, depth: at.depth + 1,
			device: uint64(self.Dev),
		}
		if at.below != "" {
			inner.below = at.below + "/" + name
		}
		stat, err := statAt(fd, name)
		if err != nil {
			if err := p.lostOr(err, inner); err != nil {
				return err
			}
			continue
		}
		if inner.verdict = p.selection.Of(inner.below, isFolder(stat), at.verdict); inner.verdict == glob.Out {
			continue
		}
		if err := p.file(inner, stat); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) regular(at place, e *tarstream.Entry, stat syscall.Stat_t) error {
	key := [2]uint64{uint64(stat.Dev), stat.Ino}
	if first, is := p.seen[key]; is && stat.Nlink > 1 {
		e.Kind, e.Target = tarstream.HardLink, first.paths[0]
		first.paths = append(first.paths, e.Path)
		p.report.Links++
		return p.begin(e)
	}
	// Without waiting: it may be a FIFO by now.
	fd, err := openAt(at.folder, at.name, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return p.lostOr(err, at)
	}
	defer syscall.Close(fd)
	if err := syscall.Fstat(fd, &stat); err != nil {
		return failure.Of(err, "cannot read %s", at.full)
	}
	if stat.Mode&syscall.S_IFMT != syscall.S_IFREG {
		p.report.skip(at.full, "it was replaced while it was read")
		return nil
	}
	e.Kind, e.Size = tarstream.File, stat.Size
	if e.Xattrs, err = readXattrs(fd, p.keeps); err != nil {
		return failure.Of(err, "cannot read the attributes of %s", at.full)
	}
	if stat.Blocks*statUnit < stat.Size {
		if e.Extents, err = extents(fd, stat.Size); err != nil {
			return failure.Of(err, "cannot find the holes of %s", at.full)
		}
	}
	if stat.Nlink > 1 {
		p.seen[key] = &linked{uint64(stat.Nlink), []string{e.Path}}
	}
	if err := p.begin(e); err != nil {
		return err
	}
	p.report.Files++
	p.report.Bytes += e.Stored()
	pieces := e.Extents
	if pieces == nil {
		pieces = []tarstream.Extent{{Length: e.Size}}
	}
	for _, piece := range pieces {
		if err := p.piece(at, fd, piece); err != nil {
			return err
		}
	}
	return nil
}

// piece copies a part of a file. One that has become shorter is filled up with zeros, as the header says its length already.
func (p *packer) piece(at place, fd int, piece tarstream.Extent) error {
	for offset, end := piece.Offset, piece.Offset+piece.Length; offset < end; {
		part := p.buffer
		if left := end - offset; left < int64(len(part)) {
			part = part[:left]
		}
		n, err := syscall.Pread(fd, part, offset)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return failure.Of(err, "cannot read %s", at.full)
		}
		if n == 0 {
			p.report.skip(at.full, "it became shorter while it was read: its end is zeros")
			_, err := io.CopyN(p.out, zeros{}, end-offset)
			return err
		}
		if _, err := p.out.Write(part[:n]); err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(data []byte) (int, error) {
	for i := range data {
		data[i] = 0
	}
	return len(data), nil
}

// extents finds where a file has data. nil: everywhere.
func extents(fd int, size int64) ([]tarstream.Extent, error) {
	list := []tarstream.Extent{}
	for offset := int64(0); offset < size; {
		data, err := syscall.Seek(fd, offset, seekData)
		if err == syscall.ENXIO {
			break // nothing but a hole behind it
		}
		if err == syscall.EINVAL {
			return nil, nil // a file system that knows no holes
		}
		if err != nil {
			return nil, err
		}
		hole, err := syscall.Seek(fd, data, seekHole)
		if err != nil {
			return nil, err
		}
		if data >= size {
			break
		}
		if hole > size {
			hole = size
		}
		list = append(list, tarstream.Extent{Offset: data, Length: hole - data})
		offset = hole
	}
	if len(list) == 1 && list[0].Length == size {
		return nil, nil
	}
	return tarstream.Coalesce(list), nil
}

// lostOr passes over a file that somebody removed meanwhile. The one that was named must be there.
func (p *packer) lostOr(err error, at place) error {
	if at.below != "" && (errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENOTDIR)) {
		p.report.skip(at.full, "it was removed or replaced while it was read")
		return nil
	}
	return failure.Of(err, "cannot read %s", at.full)
}

// devMajor and devMinor take a device's number apart, as gnu_dev_major of glibc does.
func devMajor(device uint64) int64 { return int64(device>>8&0xfff | device>>32&^0xfff) }
func devMinor(device uint64) int64 { return int64(device&0xff | device>>12&^0xff&0xffffffff) }

func makeDevice(major, minor int64) int {
	return int(minor&0xff | (major&0xfff)<<8 | (minor&^0xff)<<12 | (major&^0xfff)<<32)
}
