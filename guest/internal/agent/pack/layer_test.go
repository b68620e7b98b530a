package pack

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/tarstream"
)

const overlayOptions = ",index=on,redirect_dir=on,metacopy=off,xino=on"

// overlaid is an image and what a sandbox has made of it, in memory: the upper folder of an overlay cannot lie on another one.
type overlaid struct {
	t    *testing.T
	root string
}

func overlay(t *testing.T, makeImage func(o overlaid, image string)) overlaid {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	o := overlaid{t, t.TempDir()}
	if err := syscall.Mount("layer-test", o.root, "tmpfs", 0, ""); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	t.Cleanup(func() { o.do(syscall.Unmount(o.root, syscall.MNT_DETACH)) })
	for _, name := range []string{"image", "upper", "work", "merged"} {
		o.do(os.Mkdir(o.at(name), 0o755))
	}
	makeImage(o, o.at("image"))
	if err := o.mount(); err != nil {
		t.Skipf("cannot mount an overlay here: %v", err)
	}
	return o
}

func (o overlaid) at(names ...string) string {
	return filepath.Join(append([]string{o.root}, names...)...)
}

func (o overlaid) do(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

func (o overlaid) mount() error {
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", o.at("image"), o.at("upper"), o.at("work"))
	return syscall.Mount("overlay", o.at("merged"), "overlay", 0, options+overlayOptions)
}

// changed runs work in the sandbox, and gives its layer: packed from a new mount, as in another machine.
func (o overlaid) changed(devices bool, work func(merged string)) ([]*tarstream.Entry, map[string]string, *Report) {
	o.t.Helper()
	work(o.at("merged"))
	o.do(syscall.Unmount(o.at("merged"), 0))
	o.do(o.mount())
	defer func() { o.do(syscall.Unmount(o.at("merged"), 0)) }()
	var stream bytes.Buffer
	report, err := packLayer(boot.Layer{Upper: o.at("upper"), Image: o.at("image"), Merged: o.at("merged")}, devices, &stream)
	o.do(err)
	var entries []*tarstream.Entry
	contents := map[string]string{}
	reader := tarstream.NewReader(bufio.NewReader(&stream))
	for {
		entry, err := reader.Next()
		if err == io.EOF {
			return entries, contents, report
		}
		o.do(err)
		text, err := io.ReadAll(reader)
		o.do(err)
		entries = append(entries, entry)
		contents[entry.Path] = string(text)
	}
}

// inShort is an entry's kind, path and target.
func inShort(entries []*tarstream.Entry) []string {
	list := []string{}
	for _, e := range entries {
		line := string(e.Kind) + " " + e.Path
		if e.Target != "" {
			line += " -> " + e.Target
		}
		list = append(list, line)
	}
	return list
}

func (o overlaid) write(path, text string) {
	o.t.Helper()
	o.do(os.MkdirAll(filepath.Dir(path), 0o755))
	o.do(os.WriteFile(path, []byte(text), 0o644))
}

func expectLayer(t *testing.T, got []*tarstream.Entry, want ...string) {
	t.Helper()
	if want == nil {
		want = []string{}
	}
	if short := inShort(got); !reflect.DeepEqual(short, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(short, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestALayerSaysWhatIsGoneAndWhatCameAnew(t *testing.T) {
	o := overlay(t, func(o overlaid, image string) {
		for _, path := range []string{"kept/a", "some/a", "some/b", "whole/x/y", "anew/a", "was-folder/a", "was-file", "etc/passwd"} {
			o.write(filepath.Join(image, path), path)
		}
	})
	entries, contents, report := o.changed(false, func(root string) {
		o.do(os.Remove(root + "/some/a"))
		o.do(os.RemoveAll(root + "/whole"))
		o.do(os.RemoveAll(root + "/anew"))
		o.write(root+"/anew/b", "new")
		o.do(os.RemoveAll(root + "/was-folder"))
		o.write(root+"/was-folder", "file")
		o.do(os.Remove(root + "/was-file"))
		o.write(root+"/was-file/inner", "folder")
		o.write(root+"/kept/.wh.a", "odd")
		o.do(os.Symlink("/nowhere", root+"/link"))
		// Made and gone again: nothing of the image is to be hidden.
		o.write(root+"/kept/passing", "")
		o.do(os.Remove(root + "/kept/passing"))
	})
	expectLayer(t, entries,
		"5 anew", "0 anew/.wh..wh..opq", "0 anew/b",
		"5 kept",
		"2 link -> /nowhere",
		"5 some", "0 some/.wh.a",
		"5 was-file", "0 was-file/inner",
		"0 was-folder",
		"0 .wh.whole",
	)
	if contents["anew/b"] != "new" || contents["was-folder"] != "file" || contents["was-file/inner"] != "folder" {
		t.Errorf("contents: %q", contents)
	}
	if report.SkippedCount != 1 || report.Skipped[0].Path != "/kept/.wh.a" {
		t.Errorf("skipped: %v", report.Skipped)
	}
}

func TestARenamedFolderOfTheImageIsPackedWhole(t *testing.T) {
	o := overlay(t, func(o overlaid, image string) {
		for _, path := range []string{"a/deep/one", "a/two", "b/hidden", "c/in/d"} {
			o.write(filepath.Join(image, path), path)
		}
		o.do(os.Link(filepath.Join(image, "a/two"), filepath.Join(image, "a/three")))
	})
	entries, contents, _ := o.changed(false, func(root string) {
		o.do(os.RemoveAll(root + "/b"))
		o.do(os.Rename(root+"/a", root+"/b")) // over a place where the image has another folder
		o.write(root+"/b/deep/new", "new")
		o.do(os.Remove(root + "/b/two"))
		o.do(os.Mkdir(root+"/fresh", 0o755))
		o.do(os.Rename(root+"/c/in", root+"/fresh/moved"))
	})
	expectLayer(t, entries,
		"0 .wh.a", "5 b", "0 b/.wh..wh..opq", "5 b/deep", "0 b/deep/new", "0 b/deep/one", "0 b/three",
		"5 c", "0 c/.wh.in",
		"5 fresh", "5 fresh/moved", "0 fresh/moved/d",
	)
	if contents["b/deep/one"] != "a/deep/one" || contents["fresh/moved/d"] != "c/in/d" {
		t.Errorf("contents: %q", contents)
	}
}

func TestNamesOfOneFileStayTogether(t *testing.T) {
	o := overlay(t, func(o overlaid, image string) {
		o.write(filepath.Join(image, "p/one"), "old")
		o.do(os.MkdirAll(filepath.Join(image, "q"), 0o755))
		o.do(os.Link(filepath.Join(image, "p/one"), filepath.Join(image, "q/two")))
	})
	entries, contents, _ := o.changed(false, func(root string) {
		o.write(root+"/p/one", "new") // by one of its names
		o.write(root+"/x", "x")
		o.do(os.Link(root+"/x", root+"/y"))
	})
	expectLayer(t, entries, "5 p", "0 p/one", "0 x", "1 y -> x", "1 q/two -> p/one")
	if contents["p/one"] != "new" {
		t.Errorf("contents: %q", contents)
	}
}

func TestWhatTheAgentMakesInEveryMachineIsInNoLayer(t *testing.T) {
	for name, image := range map[string]map[string]string{
		"an image with files":      {"etc/hosts": "127.0.0.1 localhost\n", "etc/hostname": "image\n"},
		"an image without any":     {},
		"an image without entries": {"etc/hosts": ""},
	} {
		o := overlay(t, func(o overlaid, folder string) {
			for path, text := range image {
				o.write(filepath.Join(folder, path), text)
			}
		})
		entries, _, _ := o.changed(false, func(root string) {
			for _, folder := range []string{"proc", "sys", "dev", "run", "tmp"} {
				o.do(os.Mkdir(filepath.Join(root, folder), 0o755))
			}
			base := image["etc/hosts"]
			if base == "" {
				base = boot.UsualHosts
			}
			for path, text := range map[string]string{"hosts": base + "127.0.1.1\tfirst\n127.0.1.1\tsbx-second\n", "hostname": "sbx\n", "machine-id": "1\n"} {
				o.write(filepath.Join(root, "etc", path), text)
			}
		})
		if len(entries) > 0 {
			t.Errorf("%s: %v", name, inShort(entries))
		}
	}
}

func TestWhatAUserWritesInThosePlacesIsInTheLayer(t *testing.T) {
	o := overlay(t, func(overlaid, string) {})
	entries, contents, _ := o.changed(false, func(root string) {
		o.write(root+"/etc/hosts", boot.UsualHosts+"10.0.0.1 database\n127.0.1.1\tsbx\n")
		o.write(root+"/tmp/kept", "1")
	})
	expectLayer(t, entries, "5 etc", "0 etc/hosts", "5 tmp", "0 tmp/kept")
	if !strings.Contains(contents["etc/hosts"], "database") {
		t.Errorf("contents: %q", contents)
	}
}

func TestAttributesTravelAndTheOverlaysOwnDoNot(t *testing.T) {
	o := overlay(t, func(o overlaid, image string) {
		o.write(filepath.Join(image, "folder/file"), "text")
		o.write(filepath.Join(image, "same/file"), "text")
	})
	entries, _, report := o.changed(false, func(root string) {
		o.do(os.Chown(root+"/folder/file", 3000000, 7))
		o.do(syscall.Chmod(root+"/folder/file", 0o4755))
		o.do(syscall.Setxattr(root+"/folder/file", "trusted.note", []byte("a\x00b"), 0))
		o.do(os.Chmod(root+"/folder", 0o700))
		o.do(os.Chmod(root, 0o711))
		o.do(syscall.Mkfifo(root+"/fifo", 0o600))
		o.do(syscall.Mknod(root+"/null", syscall.S_IFCHR|0o666, makeDevice(1, 3)))
		o.do(syscall.Mknod(root+"/disk", syscall.S_IFBLK|0o600, makeDevice(8, 1)))
		socket, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		o.do(err)
		o.do(syscall.Bind(socket, &syscall.SockaddrUnix{Name: root + "/socket"}))
		o.do(syscall.Close(socket))
	})
	expectLayer(t, entries, "5 .", "6 fifo", "5 folder", "0 folder/file", "3 null")
	file := entries[3]
	if file.UID != 3000000 || file.GID != 7 || file.Mode != 0o4755 {
		t.Errorf("owner %d:%d, mode %o", file.UID, file.GID, file.Mode)
	}
	if !reflect.DeepEqual(file.Xattrs, map[string]string{"trusted.note": "a\x00b"}) {
		t.Errorf("attributes: %q", file.Xattrs)
	}
	if entries[0].Mode != 0o711 || entries[2].Mode != 0o700 {
		t.Errorf("modes %o and %o", entries[0].Mode, entries[2].Mode)
	}
	if report.SkippedCount != 2 {
		t.Errorf("skipped: %v", report.Skipped)
	}
}

func TestDevicesAreInALayerByPermission(t *testing.T) {
	o := overlay(t, func(overlaid, string) {})
	entries, _, _ := o.changed(true, func(root string) {
		o.do(syscall.Mknod(root+"/disk", syscall.S_IFBLK|0o600, makeDevice(8, 1)))
	})
	expectLayer(t, entries, "4 disk")
}

func TestAHostileUpperFolderIsRefusedOrPackedAsItWasSeen(t *testing.T) {
	o := overlay(t, func(o overlaid, image string) {
		o.write(filepath.Join(image, "a/file"), "text")
	})
	entries, _, _ := o.changed(false, func(string) {
		// Written past the overlay, as a guest can that mounts its disk: a whiteout of nothing, and one as newer kernels have it.
		o.do(syscall.Mknod(o.at("upper", "nothing"), syscall.S_IFCHR, 0))
		o.do(os.Mkdir(o.at("upper", "a"), 0o755))
		o.do(syscall.Setxattr(o.at("upper", "a"), noteOpaque, []byte("x"), 0))
		o.do(os.WriteFile(o.at("upper", "a", "file"), nil, 0o644))
		o.do(syscall.Setxattr(o.at("upper", "a", "file"), noteWhiteout, []byte("y"), 0))
	})
	expectLayer(t, entries, "5 a", "0 a/.wh.file")
}
