// Package inspect describes files to the host: the operations `stat` and `list` of PROTOCOL.md.
package inspect

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"

	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/wire"
)

// maxTargetBytes bounds a string in a message; a longer target of a link is left out.
const maxTargetBytes = 4096

// Stat gives the answer to a `stat`.
func Stat(message wire.Message) (wire.Info, error) {
	path := message.Text("path")
	look := os.Lstat
	if message.Flag("followLinks", true) {
		look = os.Stat
	}
	info, err := look(path)
	if err != nil {
		return wire.Info{}, failure.Of(err, "cannot look at %s", path)
	}
	entry, err := describe(path, filepath.Base(path), info)
	return wire.Info{Type: "info", File: entry}, err
}

func describe(path, name string, info fs.FileInfo) (wire.Entry, error) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return wire.Entry{}, failure.New(failure.Internal, "cannot read the attributes of %s", path)
	}
	entry := wire.Entry{
		Name: name, Type: typeOf(stat.Mode), Size: info.Size(), Mode: stat.Mode & 0o7777,
		UID: stat.Uid, GID: stat.Gid, MtimeMs: info.ModTime().UnixMilli(),
	}
	if !utf8.ValidString(name) {
		entry.Name, entry.RawName = strings.ToValidUTF8(name, "\ufffd"), []byte(name)
	}
	if entry.Type == "symlink" {
		target, err := os.Readlink(path)
		if err != nil {
			return entry, failure.Of(err, "cannot read the link %s", path)
		}
		if target = strings.ToValidUTF8(target, "\ufffd"); len(target) <= maxTargetBytes {
			entry.Target = target
		}
	}
	return entry, nil
}

func typeOf(mode uint32) string {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		return "directory"
	case syscall.S_IFLNK:
		return "symlink"
	case syscall.S_IFCHR:
		return "character-device"
	case syscall.S_IFBLK:
		return "block-device"
	case syscall.S_IFIFO:
		return "fifo"
	case syscall.S_IFSOCK:
		return "socket"
	}
	return "file"
}
