package boot

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestUpperHasTheAttributesOfTheImagesRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a folder away")
	}
	folder := t.TempDir()
	image, upper := filepath.Join(folder, "image"), filepath.Join(folder, "upper")
	if err := os.Mkdir(image, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Chown(image, 12, 34); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Chmod(image, 0o3751); err != nil {
		t.Fatal(err)
	}
	if err := syscall.UtimesNano(image, []syscall.Timespec{{Sec: 5}, {Sec: 1234567}}); err != nil {
		t.Fatal(err)
	}
	hasXattrs := syscall.Setxattr(image, "user.note", []byte("kept"), 0) == nil
	if err := syscall.Setxattr(image, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Logf("no trusted attributes here: %v", err)
	}
	// What a killed boot left.
	if err := os.Mkdir(upper+".new", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := makeUpper(image, upper); err != nil {
		t.Fatal(err)
	}
	var stat syscall.Stat_t
	if err := syscall.Lstat(upper, &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Mode&0o7777 != 0o3751 || stat.Uid != 12 || stat.Gid != 34 || stat.Mtim.Sec != 1234567 {
		t.Errorf("mode %o, owner %d:%d, time %d", stat.Mode&0o7777, stat.Uid, stat.Gid, stat.Mtim.Sec)
	}
	value := make([]byte, 16)
	if size, err := syscall.Getxattr(upper, "user.note", value); hasXattrs && (err != nil || string(value[:size]) != "kept") {
		t.Errorf("user.note is lost: %v", err)
	}
	if _, err := syscall.Getxattr(upper, "trusted.overlay.opaque", value); err == nil {
		t.Error("the overlay's note was copied")
	}
}

func TestUpperIsLeftAloneOnceItIsThere(t *testing.T) {
	folder := t.TempDir()
	upper := filepath.Join(folder, "upper")
	if err := os.Mkdir(upper, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := makeUpper(folder, upper); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(upper)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
