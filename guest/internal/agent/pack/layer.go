package pack

import (
	"errors"
	"io"
	"os"
	"reflect"
	"sort"
	"strings"
	"syscall"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/glob"
	"bandsox.dev/guest/internal/tarstream"
)

// The writable layer of a sandbox as a layer of an image: OCI image-spec, layer.md, "Representing Changes". What is in the
// overlay's upper folder tells which names have changed; all else of them is read from the overlay itself, as the sandbox saw it.
// How an overlay keeps what it must remember is in the kernel's Documentation/filesystems/overlayfs.rst.

const (
	whiteoutPrefix = ".wh."
	opaqueMark     = ".wh..wh..opq"

	noteOpaque   = "trusted.overlay.opaque"
	noteRedirect = "trusted.overlay.redirect"
	noteWhiteout = "trusted.overlay.whiteout"

	// maxHosts bounds what is compared of /etc/hosts; a longer one is somebody's own.
	maxHosts = 65536
	hosts    = "etc/hosts"
)

// ofTheMachine are files that are one machine's own, and no image's. The agent writes them, under another name first.
var ofTheMachine = map[string]bool{
	"etc/hostname": true, "etc/machine-id": true, "etc/hostname.bandsox": true, "etc/hosts.bandsox": true, "etc/resolv.conf.bandsox": true,
}

// madeByTheAgent are folders that it makes in every machine whose image lacks them; only what is in them is the sandbox's.
var madeByTheAgent = map[string]bool{"etc": true, "proc": true, "sys": true, "dev": true, "run": true, "tmp": true}

// harmlessDevices are what every system has, by major and minor number: those that the host takes in any image.
var harmlessDevices = map[[2]int64]bool{
	{1, 3}: true, {1, 5}: true, {1, 7}: true, {1, 8}: true, {1, 9}: true, {5, 0}: true, {5, 1}: true, {5, 2}: true,
}

type layerPacker struct {
	*packer
	devices bool
}

// folders are one folder three times. image is -1 where nothing of the image is seen through.
type folders struct{ merged, upper, image int }

// layer packs the writable layer on one disk over the image on another.
func layer(a arguments, stdout io.Writer) (*Report, error) {
	mounted, err := boot.MountLayer(a.image, a.path)
	if err != nil {
		return nil, failure.Of(err, "cannot mount the sandbox's disk")
	}
	return packLayer(mounted, a.devices, stdout)
}

func packLayer(at boot.Layer, devices bool, stdout io.Writer) (*Report, error) {
	everything, err := glob.NewSelection(nil, nil)
	if err != nil {
		return nil, err
	}
	l := &layerPacker{newPacker(everything, ""), devices}
	l.keeps = isOfTheFile
	l.refuses = l.reason
	return l.write(stdout, func() error { return l.all(at) })
}

// isOfTheFile is true of all extended attributes but an overlay's own notes: in an image they would be lies.
func isOfTheFile(name string) bool {
	return !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.")
}

// reason says why a file cannot be in a layer.
func (l *layerPacker) reason(at place, stat syscall.Stat_t) string {
	if strings.HasPrefix(at.name, whiteoutPrefix) {
		return "in a layer its name would mean that another file is gone"
	}
	kind := stat.Mode & syscall.S_IFMT
	if kind != syscall.S_IFCHR && kind != syscall.S_IFBLK || l.devices {
		return ""
	}
	if number := [2]int64{devMajor(uint64(stat.Rdev)), devMinor(uint64(stat.Rdev))}; kind == syscall.S_IFCHR && harmlessDevices[number] {
		return ""
	}
	return "a device that images may not have here"
}

func (l *layerPacker) all(at boot.Layer) error {
	var root folders
	for _, each := range []struct {
		path string
		fd   *int
	}{{at.Merged, &root.merged}, {at.Upper, &root.upper}, {at.Image, &root.image}} {
		fd, err := openAt(0, each.path, openFolder, 0) // absolute, so the descriptor is not looked at
		if err != nil {
			return failure.Of(err, "cannot open the root folder")
		}
		defer syscall.Close(fd)
		*each.fd = fd
	}
	e, isSame, err := l.attributes(root, "")
	if err != nil {
		return err
	}
	if !isSame {
		l.report.Folders++
		if err := l.begin(e); err != nil {
			return err
		}
	}
	if err := l.changes(root, "", 1); err != nil {
		return err
	}
	return l.otherNames(root)
}

// attributes are a folder's, and whether the image's has the same.
func (l *layerPacker) attributes(at folders, below string) (*tarstream.Entry, bool, error) {
	e, err := l.attributesOf(at.merged, below)
	if err != nil || at.image < 0 {
		return e, false, err
	}
	image, err := l.attributesOf(at.image, below)
	if err != nil {
		return nil, false, err
	}
	if below == "" || below == "etc" { // the agent writes there
		image.Seconds, image.Nanoseconds = e.Seconds, e.Nanoseconds
	}
	return e, reflect.DeepEqual(e, image), nil
}

func (l *layerPacker) attributesOf(fd int, below string) (*tarstream.Entry, error) {
	var stat syscall.Stat_t
	if err := syscall.Fstat(fd, &stat); err != nil {
		return nil, failure.Of(err, "cannot read /%s", below)
	}
	e := l.entry(below, stat)
	e.Kind = tarstream.Folder
	var err error
	if e.Xattrs, err = readXattrs(fd, l.keeps); err != nil {
		return nil, failure.Of(err, "cannot read the attributes of /%s", below)
	}
	return e, nil
}

// changes packs what a folder of the writable layer does to the image's.
func (l *layerPacker) changes(at folders, below string, depth int) error {
	list, err := names(at.upper)
	if err != nil {
		return failure.Of(err, "cannot list /%s", below)
	}
	sort.Strings(list)
	for _, name := range list {
		if err := l.change(at, name, strings.TrimPrefix(below+"/"+name, "/"), depth); err != nil {
			return err
		}
	}
	return nil
}

func (l *layerPacker) change(at folders, name, path string, depth int) error {
	if ofTheMachine[path] {
		return nil
	}
	upper, err := statAt(at.upper, name)
	if err != nil {
		return failure.Of(err, "cannot read /%s", path)
	}
	gone, err := isWhiteout(at.upper, name, upper)
	if err != nil {
		return failure.Of(err, "cannot read /%s", path)
	}
	if gone {
		return l.gone(at.image, name, path)
	}
	stat, err := statAt(at.merged, name)
	if err != nil {
		return failure.Of(err, "cannot read /%s", path)
	}
	inner := place{folder: at.merged, name: name, full: "/" + path, below: path, verdict: glob.In, depth: depth}
	if path == hosts && l.isOwnHosts(at) {
		return nil
	}
	if !isFolder(stat) {
		return l.file(inner, stat)
	}
	if reason := l.reason(inner, stat); reason != "" {
		l.report.skip(inner.full, reason)
		return nil
	}
	return l.changedFolder(at, inner)
}

// gone hides what the image has. Where it has nothing there is nothing to hide.
func (l *layerPacker) gone(image int, name, path string) error {
	if image < 0 {
		return nil
	}
	if _, err := statAt(image, name); err != nil {
		if errors.Is(err, syscall.ENOENT) {
			return nil
		}
		return failure.Of(err, "cannot read /%s of the image", path)
	}
	return l.mark(strings.TrimSuffix(path, name) + whiteoutPrefix + name)
}

func (l *layerPacker) mark(path string) error {
	l.report.Others++
	return l.begin(&tarstream.Entry{Kind: tarstream.File, Path: path})
}

func (l *layerPacker) changedFolder(outer folders, at place) error {
	if at.depth > maxDepth {
		return failure.New(failure.PathInvalid, "cannot pack %.200s…: it lies more than %d folders deep", at.full, maxDepth)
	}
	inner := folders{image: -1}
	var err error
	if inner.merged, err = openAt(outer.merged, at.name, openFolder, 0); err != nil {
		return failure.Of(err, "cannot open %s", at.full)
	}
	defer syscall.Close(inner.merged)
	if inner.upper, err = openAt(outer.upper, at.name, openFolder, 0); err != nil {
		return failure.Of(err, "cannot open %s", at.full)
	}
	defer syscall.Close(inner.upper)
	if outer.image >= 0 {
		inner.image, err = openAt(outer.image, at.name, openFolder, 0)
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
			inner.image = -1 // nothing, or a file that the folder stands in the place of
		} else if err != nil {
			return failure.Of(err, "cannot open %s of the image", at.full)
		} else {
			defer syscall.Close(inner.image)
		}
	}
	opaque, err := readNote(inner.upper, noteOpaque)
	if err != nil {
		return failure.Of(err, "cannot read the attributes of %s", at.full)
	}
	redirect, err := readNote(inner.upper, noteRedirect)
	if err != nil {
		return failure.Of(err, "cannot read the attributes of %s", at.full)
	}
	e, isSame, err := l.attributes(inner, at.below)
	if err != nil {
		return err
	}
	hides := inner.image >= 0 && (opaque == "y" || redirect != "")
	waits := isSame && !hides || inner.image < 0 && madeByTheAgent[at.below]
	if waits {
		l.waiting = append(l.waiting, e)
	} else {
		l.report.Folders++
		if err := l.begin(e); err != nil {
			return err
		}
	}
	waiting := len(l.waiting)
	if hides {
		inner.image = -1
		if err := l.mark(at.below + "/" + opaqueMark); err != nil {
			return err
		}
	}
	if redirect != "" {
		// A folder of the image under another name: a layer can only hold all of it once more.
		err = l.content(at, inner.merged)
	} else {
		err = l.changes(inner, at.below, at.depth+1)
	}
	if waits && len(l.waiting) >= waiting {
		l.waiting = l.waiting[:waiting-1] // nothing in it was taken
	}
	return err
}

// otherNames links what has changed to the names that the file has in the image: it is one file still, but only that name is in the
// writable layer by which it was changed. The overlay knows by its index.
func (l *layerPacker) otherNames(root folders) error {
	missing := false
	for _, each := range l.seen {
		missing = missing || uint64(len(each.paths)) < each.names
	}
	if !missing {
		return nil
	}
	taken := map[string]bool{}
	for _, each := range l.seen {
		for _, path := range each.paths {
			taken[path] = true
		}
	}
	return l.linkBelow(root.merged, "", 1, taken)
}

func (l *layerPacker) linkBelow(folder int, below string, depth int, taken map[string]bool) error {
	list, err := names(folder)
	if err != nil {
		return failure.Of(err, "cannot list /%s", below)
	}
	sort.Strings(list)
	for _, name := range list {
		path := strings.TrimPrefix(below+"/"+name, "/")
		stat, err := statAt(folder, name)
		if err != nil {
			return failure.Of(err, "cannot read /%s", path)
		}
		if isFolder(stat) && depth <= maxDepth {
			fd, err := openAt(folder, name, openFolder, 0)
			if err != nil {
				return failure.Of(err, "cannot open /%s", path)
			}
			err = l.linkBelow(fd, path, depth+1, taken)
			_ = syscall.Close(fd) // read only: its error has nothing to tell
			if err != nil {
				return err
			}
			continue
		}
		first, isLinked := l.seen[[2]uint64{uint64(stat.Dev), stat.Ino}]
		if !isLinked || stat.Mode&syscall.S_IFMT != syscall.S_IFREG || taken[path] || strings.HasPrefix(name, whiteoutPrefix) {
			continue
		}
		e := l.entry(path, stat)
		e.Kind, e.Target = tarstream.HardLink, first.paths[0]
		l.report.Links++
		if err := l.begin(e); err != nil {
			return err
		}
	}
	return nil
}

// isOwnHosts says that nobody but the agent has changed /etc/hosts.
func (l *layerPacker) isOwnHosts(at folders) bool {
	own, err := readShort(at.merged, "hosts")
	if err != nil {
		return false // it is packed, or its reading fails there
	}
	image := ""
	if at.image >= 0 {
		if image, err = readShort(at.image, "hosts"); err != nil && !errors.Is(err, syscall.ENOENT) {
			return false
		}
	}
	return boot.IsOwnHosts(own, image)
}

func readShort(folder int, name string) (string, error) {
	stat, err := statAt(folder, name)
	if err != nil {
		return "", err
	}
	if stat.Mode&syscall.S_IFMT != syscall.S_IFREG || stat.Size > maxHosts {
		return "", syscall.EINVAL
	}
	fd, err := openAt(folder, name, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxHosts))
	return string(text), err
}

// isWhiteout tells what the overlay keeps in the place of a file that is gone: a device that there is not, or since Linux 6.7 in
// nested overlays an empty file with a note.
func isWhiteout(folder int, name string, stat syscall.Stat_t) (bool, error) {
	switch kind := stat.Mode & syscall.S_IFMT; {
	case kind == syscall.S_IFCHR:
		return stat.Rdev == 0, nil
	case kind != syscall.S_IFREG || stat.Size != 0:
		return false, nil
	}
	fd, err := openAt(folder, name, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer syscall.Close(fd)
	_, err = readXattr(fd, noteWhiteout)
	if errors.Is(err, syscall.ENODATA) || errors.Is(err, syscall.ENOTSUP) {
		return false, nil
	}
	return err == nil, err
}

// readNote is "" where there is none.
func readNote(fd int, name string) (string, error) {
	value, err := readXattr(fd, name)
	if errors.Is(err, syscall.ENODATA) || errors.Is(err, syscall.ENOTSUP) {
		return "", nil
	}
	return string(value), err
}
