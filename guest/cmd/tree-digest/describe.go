package main

import (
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/cespare/xxhash/v2"
)

// line is what is printed of a path.
type line struct {
	Path string `json:"path"`
	Type string `json:"type"`
	Mode string `json:"mode"` // octal, with setuid, setgid and sticky
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	// Links is 0 for folders: file systems differ in what they count there.
	Links uint64 `json:"links"`
	// Device is major:minor of a device node.
	Device string `json:"device,omitempty"`
	Target string `json:"target,omitempty"`
	Size   *int64 `json:"size,omitempty"` // of regular files
	Digest string `json:"xxh64,omitempty"`
	// SameAs is the first path of the same file, where there are several in the tree; the first one names itself.
	SameAs string            `json:"sameAs,omitempty"`
	Xattrs map[string]string `json:"xattrs,omitempty"` // values in hexadecimal; encoding/json sorts the names
}

type inode struct{ device, number uint64 }

// content is remembered of a file with several names, so that it is read once.
type content struct{ firstPath, digest string }

type describer struct {
	root     string
	contents map[inode]content
}

var types = map[uint32]string{
	syscall.S_IFREG:  "file",
	syscall.S_IFDIR:  "folder",
	syscall.S_IFLNK:  "symlink",
	syscall.S_IFIFO:  "fifo",
	syscall.S_IFSOCK: "socket",
	syscall.S_IFCHR:  "character device",
	syscall.S_IFBLK:  "block device",
}

func (d *describer) describe(each node) (line, error) {
	stat := each.stat
	place := join(d.root, each.name)
	described := line{
		Path:  escape(each.name),
		Type:  types[stat.Mode&syscall.S_IFMT],
		Mode:  fmt.Sprintf("%04o", stat.Mode&0o7777),
		UID:   stat.Uid,
		GID:   stat.Gid,
		Links: uint64(stat.Nlink),
	}
	var err error
	if described.Xattrs, err = readXattrs(place); err != nil {
		return line{}, err
	}
	switch stat.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		described.Links = 0
		return described, nil
	case syscall.S_IFLNK:
		target, err := os.Readlink(place)
		if err != nil {
			return line{}, err
		}
		described.Target = escape(target)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		major, minor := splitDevice(uint64(stat.Rdev))
		described.Device = fmt.Sprintf("%d:%d", major, minor)
	}
	isFile := stat.Mode&syscall.S_IFMT == syscall.S_IFREG
	if isFile {
		described.Size = &each.stat.Size
	}
	key := inode{uint64(stat.Dev), stat.Ino}
	known, isKnown := d.contents[key]
	if !isKnown {
		known.firstPath = described.Path
		if isFile {
			if known.digest, err = digestFile(place); err != nil {
				return line{}, err
			}
		}
		if stat.Nlink > 1 {
			d.contents[key] = known
		}
	}
	described.Digest = known.digest
	if stat.Nlink > 1 {
		described.SameAs = known.firstPath
	}
	return described, nil
}

// splitDevice decodes a device number as glibc does, <sys/sysmacros.h>.
func splitDevice(device uint64) (major, minor uint64) {
	return device>>8&0xfff | device>>32&0xfffff000, device&0xff | device>>12&0xffffff00
}

func digestFile(place string) (string, error) {
	file, err := os.OpenFile(place, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer file.Close()
	digest := xxhash.New()
	if _, err := io.Copy(digest, file); err != nil {
		return "", fmt.Errorf("cannot read %s: %w", place, err)
	}
	return fmt.Sprintf("%016x", digest.Sum64()), nil
}
