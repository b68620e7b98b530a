package pack

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"path"
	"strings"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/failure"
)

const (
	stagePrefix = ".bandsox-copy-"
	// root is what was copied, in its stage.
	root = "root"
	// sweepPatience is how long a sweep that was asked for waits for who is being killed.
	sweepPatience = 2 * time.Second
	sweepPause    = 20 * time.Millisecond
)

// target is where a copy shall be: a name in a folder, or, when the name is "", that folder itself.
type target struct {
	path string
	fd   int
	name string
}

// openTarget follows symbolic links on the way, which whoever named it has meant, but not one in its place.
func openTarget(to string) (*target, error) {
	parent, name := path.Split(to)
	if name == "." || name == "" {
		parent, name = to, ""
	}
	if len(to) >= syscall.PathMax || name == ".." {
		return nil, failure.New(failure.PathInvalid, "cannot copy to %.200q: it is not a good path", to)
	}
	fd, err := openAt(0, parent, openFolder&^syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, failure.Of(err, "cannot copy to %s", to)
	}
	t := &target{path: strings.TrimSuffix(to, "/."), fd: fd, name: name}
	if name == "" {
		return t, nil
	}
	// A folder that is there may be another file system, and the stage must be on that one.
	if there, err := statAt(fd, name); err == nil && isFolder(there) {
		inner, err := openAt(fd, name, openFolder, 0)
		if err != nil {
			t.close()
			return nil, failure.Of(err, "cannot copy to %s", to)
		}
		t.close()
		return &target{path: to, fd: inner}, nil
	}
	return t, nil
}

func (t *target) close() {
	_ = syscall.Close(t.fd) // opened for reading: there is nothing to lose
}

func sweepAt(to string) (*Report, error) {
	t, err := openTarget(to)
	if err != nil {
		return nil, err
	}
	defer t.close()
	// Who was killed a moment ago may not have ended yet.
	for deadline := time.Now().Add(sweepPatience); t.sweep() > 0 && time.Now().Before(deadline); {
		time.Sleep(sweepPause)
	}
	return &Report{Skipped: []Skipped{}}, nil
}

// sweep removes what copies have left that were killed. Who lives holds a lock on its stage; it says how many do.
func (t *target) sweep() (alive int) {
	list, err := names(t.fd)
	if err != nil {
		return 0 // the copy itself will say so
	}
	for _, name := range list {
		if !strings.HasPrefix(name, stagePrefix) {
			continue
		}
		fd, err := openAt(t.fd, name, openFolder, 0)
		if err != nil {
			continue // not a stage
		}
		if syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			if err := removeTree(t.fd, name); err != nil {
				console.Printf("cannot remove %s, which an ended copy has left: %v", name, err)
			}
		} else {
			alive++
		}
		_ = syscall.Close(fd)
	}
	return alive
}

// stage is a folder beside the target.
type stage struct {
	target *target
	name   string
	fd     int
}

func newStage(t *target) (*stage, error) {
	for {
		var random [8]byte
		if _, err := rand.Read(random[:]); err != nil {
			return nil, err
		}
		s := &stage{target: t, name: stagePrefix + hex.EncodeToString(random[:])}
		if err := syscall.Mkdirat(t.fd, s.name, 0o700); err != nil {
			return nil, failure.Of(err, "cannot copy to %s", t.path)
		}
		var err error
		if s.fd, err = openAt(t.fd, s.name, openFolder, 0); err == nil {
			if err = syscall.Flock(s.fd, syscall.LOCK_EX); err == nil {
				_, err = statAt(t.fd, s.name)
			}
		}
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, syscall.ENOENT) {
			s.remove()
			return nil, failure.Of(err, "cannot copy to %s", t.path)
		}
		// Somebody who swept took it for left behind before it was locked.
	}
}

// remove takes away what is left of the stage. Harmless when repeated.
func (s *stage) remove() {
	if err := removeTree(s.target.fd, s.name); err != nil && err != syscall.ENOENT {
		console.Printf("cannot remove %s: %v", s.name, err)
	}
	if s.fd > 0 {
		_ = syscall.Close(s.fd)
		s.fd = 0
	}
}

// removeTree removes a folder with all that is in it, or a file.
func removeTree(folder int, name string) error {
	err := removeAt(folder, name, 0)
	if err != syscall.EISDIR && err != syscall.EPERM {
		return err
	}
	fd, err := openAt(folder, name, openFolder, 0)
	if err == syscall.EACCES { // its attributes are set already
		if err = syscall.Fchmodat(folder, name, 0o700, 0); err == nil {
			fd, err = openAt(folder, name, openFolder, 0)
		}
	}
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	list, err := names(fd)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		if err := syscall.Fchmod(fd, 0o700); err != nil {
			return err
		}
	}
	for _, each := range list {
		if err := removeTree(fd, each); err != nil {
			return err
		}
	}
	return removeAt(folder, name, atRemoveDir)
}

// commit puts what was staged in its place. What could be in the way is looked for first, so that a refusal leaves all as it was.
func (s *stage) commit() error {
	t := s.target
	if err := syncFileSystem(s.fd); err != nil {
		return failure.Of(err, "cannot write %s to its disk", t.path)
	}
	staged, err := statAt(s.fd, root)
	if err == syscall.ENOENT {
		return nil // an empty stream
	}
	if err != nil {
		return err
	}
	m := merger{device: uint64(staged.Dev)}
	name := t.name
	if name == "" {
		name = "."
	}
	if err := m.into(s.fd, root, staged, t.fd, name, t.path); err != nil {
		return err
	}
	if err := syncFileSystem(t.fd); err != nil {
		return failure.Of(err, "cannot write %s to its disk", t.path)
	}
	return nil
}

// merger moves files into a folder that may have some of their names.
type merger struct{ device uint64 }

func (m merger) into(from int, name string, staged syscall.Stat_t, to int, toName, full string) error {
	if err := m.check(from, name, staged, to, toName, full); err != nil {
		return err
	}
	return m.move(from, name, staged, to, toName, full)
}

// check says why something cannot take its place.
func (m merger) check(from int, name string, staged syscall.Stat_t, to int, toName, full string) error {
	there, err := statAt(to, toName)
	if err == syscall.ENOENT {
		return nil
	}
	if err != nil {
		return failure.Of(err, "cannot copy to %s", full)
	}
	switch {
	case isFolder(staged) && !isFolder(there):
		return failure.New(failure.NotADirectory, "cannot copy a folder to %s: something else is there", full)
	case !isFolder(staged) && isFolder(there):
		return failure.New(failure.IsADirectory, "cannot copy a file to %s: a folder is there", full)
	case !isFolder(staged):
		return nil
	case uint64(there.Dev) != m.device:
		return failure.New(failure.NotADirectory, "cannot copy to %s as a part of a larger copy: another file system is there", full)
	}
	return m.each(from, name, to, toName, full, m.check)
}

// move renames a file, or a folder that is not there yet; else it goes into the folder.
func (m merger) move(from int, name string, staged syscall.Stat_t, to int, toName, full string) error {
	if isFolder(staged) {
		there, err := statAt(to, toName)
		if err == nil && isFolder(there) {
			return m.each(from, name, to, toName, full, m.move)
		}
	}
	if err := syscall.Renameat(from, name, to, toName); err != nil {
		return failure.Of(err, "cannot put %s in its place", full)
	}
	return nil
}

// each does something with all that is in a staged folder, and the folder that it shall go to.
func (m merger) each(from int, name string, to int, toName, full string,
	do func(from int, name string, staged syscall.Stat_t, to int, toName, full string) error) error {
	source, err := openAt(from, name, openFolder, 0)
	if err != nil {
		return failure.Of(err, "cannot copy to %s", full)
	}
	defer syscall.Close(source)
	aim, err := openAt(to, toName, openFolder, 0)
	if err != nil {
		return failure.Of(err, "cannot copy to %s", full)
	}
	defer syscall.Close(aim)
	list, err := names(source)
	if err != nil {
		return failure.Of(err, "cannot copy to %s", full)
	}
	for _, each := range list {
		staged, err := statAt(source, each)
		if err == nil {
			err = do(source, each, staged, aim, each, strings.TrimSuffix(full, "/")+"/"+each)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
