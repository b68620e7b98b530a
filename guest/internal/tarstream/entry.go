// Package tarstream writes and reads tar as a stream, with what archive/tar of the standard library leaves out: sparse files whose
// holes stay holes. It writes POSIX pax with GNU's sparse format 1.0; it reads these, ustar, and GNU's older forms.
//
// A tar is a row of 512-byte headers, each followed by its file's bytes, padded to whole blocks. What does not fit a header comes in
// an entry of its own before it. See POSIX.1-2017, pax, and the GNU tar manual, "Storing Sparse Files".
package tarstream

import "errors"

const block = 512

// Kinds of entries: tar's own type flags.
const (
	File        = '0'
	HardLink    = '1'
	Symlink     = '2'
	CharDevice  = '3'
	BlockDevice = '4'
	Folder      = '5'
	FIFO        = '6'
)

const (
	// maxExtensionBytes bounds extended headers, long names and sparse maps, as archive/tar does.
	maxExtensionBytes = 1 << 20
	xattrPrefix       = "SCHILY.xattr."
	maxOwner          = 1<<32 - 2 // the last uid_t means "no change" to the kernel
)

// ErrInvalid is what every error about a stream's form wraps.
var ErrInvalid = errors.New("not a good tar stream")

// Extent is a part of a file that is stored; what lies between extents is zeros.
type Extent struct{ Offset, Length int64 }

// Entry is one file of a stream.
type Entry struct {
	Kind byte
	// Path and Target are bytes of any encoding, as they are in the stream.
	Path, Target string
	Mode         uint32 // permission bits with set-id and sticky
	UID, GID     int64
	Seconds      int64 // since 1970
	Nanoseconds  int64
	Xattrs       map[string]string
	Major, Minor int64
	// Size is the file's, with its holes.
	Size int64
	// Extents is nil for a file that is stored whole.
	Extents []Extent
}

// Stored is how many bytes follow the header.
func (e *Entry) Stored() int64 {
	if e.Kind != File {
		return 0
	}
	if e.Extents == nil {
		return e.Size
	}
	var sum int64
	for _, extent := range e.Extents {
		sum += extent.Length
	}
	return sum
}

func padding(size int64) int64 { return (block - size%block) % block }
