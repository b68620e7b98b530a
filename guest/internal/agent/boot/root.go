package boot

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
)

const (
	lowerFolder = "/lower" // the image's disk
	rwFolder    = "/rw"    // the writable layer's file system, with upper, work and stores in it
	newRoot     = "/newroot"

	deviceTimeout = 10 * time.Second
	devicePoll    = 2 * time.Millisecond
)

// overlayOptions are tried in turn, as kernels and lower file systems differ. redirect_dir lets image folders be renamed
// (EXDEV without it), index keeps hard links together when one of them is written, xino gives files one stable inode number.
// metacopy stays off: a file whose data is still below would be lost with a re-laid image.
var overlayOptions = []string{
	",index=on,redirect_dir=on,metacopy=off,xino=on",
	",index=on,redirect_dir=on,metacopy=off",
	",redirect_dir=on,metacopy=off",
	",redirect_dir=on",
	"",
}

// Root is the assembled root file system, with what is needed to leave it in a clean state.
type Root struct {
	rw *os.File // rwFolder; it has no name any more inside the new root
	// persistent says that rw is a disk and not memory.
	persistent bool
}

// Assemble mounts image, writable layer and overlay, and enters the result. The old root stays underneath, unreachable.
func Assemble(config Config, stages *Stages) (*Root, error) {
	if err := waitForDevice(config.Root); err != nil {
		return nil, err
	}
	if config.Overlay != "" {
		if err := waitForDevice(config.Overlay); err != nil {
			return nil, err
		}
	}
	stages.Done("disks")
	image, err := mountImage(config.Root)
	if err != nil {
		return nil, err
	}
	layer := mount{"tmpfs", rwFolder, "tmpfs", 0, "mode=755"}
	if config.Overlay != "" {
		layer = mount{config.Overlay, rwFolder, "ext4", syscall.MS_NOATIME, ""}
	}
	if err := layer.do(); err != nil {
		return nil, err
	}
	rw, err := os.Open(rwFolder)
	if err != nil {
		return nil, fmt.Errorf("cannot open the writable layer: %w", err)
	}
	if err := mountOverlay(image); err != nil {
		return nil, err
	}
	if err := enter(newRoot); err != nil {
		return nil, err
	}
	stages.Done("root")
	return &Root{rw: rw, persistent: config.Overlay != ""}, nil
}

// waitForDevice polls: devtmpfs makes the node from a kernel thread, and drivers find disks in their own time.
func waitForDevice(path string) error {
	deadline := time.Now().Add(deviceTimeout)
	for {
		_, err := os.Stat(path)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no disk %s within %v", path, deviceTimeout)
		}
		time.Sleep(devicePoll)
	}
}

func mountOverlay(image string) error {
	if err := makeUpper(image, rwFolder+"/upper"); err != nil {
		return fmt.Errorf("cannot prepare the writable layer: %w", err)
	}
	if err := makeFolder(rwFolder+"/work", 0o755); err != nil {
		return fmt.Errorf("cannot prepare the writable layer: %w", err)
	}
	folders := "lowerdir=" + image + ",upperdir=" + rwFolder + "/upper,workdir=" + rwFolder + "/work"
	var err error
	for _, options := range overlayOptions {
		overlay := mount{"overlay", newRoot, "overlay", 0, folders + options}
		err = overlay.do()
		if errors.Is(err, syscall.ESTALE) {
			// index=on remembers the image below. Without it the mount would work, and mix files of two images.
			return fmt.Errorf("the writable layer was made over another image: %w", err)
		}
		if !errors.Is(err, syscall.EINVAL) { // EINVAL: an option that this kernel does not have
			return err
		}
	}
	return err
}

// enter makes a mount the root: move it over the old one, then chroot (what switch_root(8) does; pivot_root(2) refuses the
// initramfs). All threads share one root, so one call moves the whole agent.
func enter(path string) error {
	if err := os.Chdir(path); err != nil {
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot move the new root into place: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	return nil
}

// Sync writes to the disks what waits to be written, and says when the writable layer's could not take it.
func (r *Root) Sync() error {
	_, _, errno := syscall.Syscall(sysSyncfs, r.rw.Fd(), 0, 0)
	syscall.Sync()
	if errno != 0 {
		return fmt.Errorf("cannot write the writable layer to its disk: %w", errno)
	}
	return nil
}

// Unmount makes the writable layer clean on its disk. Read-only is as good as unmounted, and works while this process has
// its root in it.
func (r *Root) Unmount() {
	if !r.persistent {
		return
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		console.Printf("cannot make the root read-only: %v", err)
	}
	if err := syscall.Mount("", r.path(), "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		console.Printf("cannot make the writable layer read-only: %v", err)
		syscall.Sync() // its journal does the rest at the next mount
	}
}

// path names the writable layer's file system, which lies outside the root: /proc/self/fd leads there all the same.
func (r *Root) path() string { return fmt.Sprintf("/proc/self/fd/%d", r.rw.Fd()) }
