package transfer

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"bandsox.dev/guest/internal/agent/failure"
)

const (
	// maxLinks is how many symbolic links the kernel follows in one path (path_resolution(7)).
	maxLinks = 40
	// maxNameBytes is NAME_MAX.
	maxNameBytes = 255
)

// target is where an upload goes: the place behind all symbolic links, and what is there now.
type target struct {
	path    string
	current *syscall.Stat_t // nil: nothing
}

// findTarget follows the links of the last name by hand, since what the last one points to need not exist.
func findTarget(path string) (target, error) {
	asked := path
	if strings.HasSuffix(path, "/") {
		return target{}, failure.New(failure.IsADirectory, "cannot write %s: it names a folder", asked)
	}
	for links := 0; links <= maxLinks; links++ {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return target{path: path}, nil
		}
		if err != nil {
			return target{}, failure.Of(err, "cannot write %s", asked)
		}
		switch mode := info.Mode(); {
		case mode.IsRegular():
			current, ok := info.Sys().(*syscall.Stat_t)
			if !ok {
				return target{}, failure.New(failure.Internal, "cannot read the owner of %s", path)
			}
			return target{path: path, current: current}, nil
		case mode.IsDir():
			return target{}, failure.New(failure.IsADirectory, "cannot write %s: it is a folder", asked)
		case mode&os.ModeSymlink == 0:
			return target{}, failure.New(failure.NotAFile, "cannot write %s: it is no regular file", asked)
		}
		link, err := os.Readlink(path)
		if err != nil {
			return target{}, failure.Of(err, "cannot follow %s", asked)
		}
		if !filepath.IsAbs(link) {
			// Not filepath.Join: it would take ".." away before the kernel could follow links in front of it.
			link = filepath.Dir(path) + "/" + link
		}
		path = link
	}
	return target{}, failure.Of(syscall.ELOOP, "cannot write %s", asked)
}

// split gives the folder, never empty, and the last name of a path, without cleaning "..".
func split(path string) (folder, name string) {
	slash := strings.LastIndexByte(path, '/')
	folder, name = path[:slash], path[slash+1:]
	if folder == "" {
		folder = "/"
	}
	return folder, name
}

// createTemporary makes an empty file that only the agent knows, beside the target: a rename cannot leave its file system.
func createTemporary(target string) (*os.File, error) {
	folder, name := split(target)
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return nil, fmt.Errorf("cannot name a temporary file: %w", err)
	}
	suffix := ".bandsox-" + hex.EncodeToString(random)
	if len(name) > maxNameBytes {
		return nil, syscall.ENAMETOOLONG // what the rename would say, after the whole file was sent
	}
	if most := maxNameBytes - len(suffix) - 1; len(name) > most {
		name = name[:most]
	}
	return os.OpenFile(folder+"/."+name+suffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
}

// syncFolder makes a rename durable.
func syncFolder(path string) error {
	folder, _ := split(path)
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer dir.Close() // read only: its error has nothing to tell
	err = dir.Sync()
	if errors.Is(err, syscall.EINVAL) {
		return nil // the file system has nothing to sync for folders (fsync(2)), such as /proc or some FUSE
	}
	return err
}
