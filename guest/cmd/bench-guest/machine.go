package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// sysFinitModule is finit_module(2) on x86-64; package syscall was frozen before it.
const sysFinitModule = 313

const deviceTimeout = 10 * time.Second

// stages are when the parts of the boot were done, in ms since the kernel started.
var stages = map[string]int64{}

// runMachine boots as directly as it can be written down: what the image needs, in the order in which it needs it, and
// nothing that a sandbox could start without.
func runMachine() error {
	noteStage("agent")
	if err := mountSystem(); err != nil {
		return err
	}
	commandLine, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	settings := parseSettings(string(commandLine))
	if err := loadModules(); err != nil {
		return err
	}
	noteStage("modules")
	for _, disk := range []string{settings["root"], settings["overlay"]} {
		if err := waitForDisk(disk); err != nil {
			return err
		}
	}
	noteStage("disks")
	if err := enterRoot(settings["root"], settings["overlay"]); err != nil {
		return err
	}
	noteStage("root")
	if err := mountSystem(); err != nil {
		return err
	}
	noteStage("system")
	if settings["bench"] == "line" {
		if err := mountMemory(); err != nil {
			return err
		}
		return serveLine(settings["serial"])
	}
	port, err := strconv.ParseUint(settings["port"], 10, 32)
	if err != nil {
		return err
	}
	return serve(uint32(port))
}

func mountSystem() error {
	for _, m := range [][3]string{{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", "mode=755"}} {
		if err := syscall.Mount(m[0], m[1], m[0], 0, m[2]); err != nil && err != syscall.EBUSY {
			return fmt.Errorf("cannot mount %s: %w", m[1], err)
		}
	}
	return nil
}

// mountMemory is for files that are never on a disk, where a sandbox has them as well.
func mountMemory() error {
	const folder = "/dev/shm"
	if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := syscall.Mount("shm", folder, "tmpfs", 0, "mode=1777"); err != nil {
		return fmt.Errorf("cannot mount %s: %w", folder, err)
	}
	return nil
}

// parseSettings gives the words bandsox.NAME=VALUE of a kernel's command line.
func parseSettings(commandLine string) map[string]string {
	settings := map[string]string{}
	for _, word := range strings.Fields(commandLine) {
		if parts := strings.SplitN(strings.TrimPrefix(word, "bandsox."), "=", 2); len(parts) == 2 {
			settings[parts[0]] = parts[1]
		}
	}
	return settings
}

func loadModules() error {
	names, err := os.ReadFile("/modules/load.boot")
	if err != nil {
		return err
	}
	noParameters := []byte{0}
	for _, name := range strings.Fields(string(names)) {
		file, err := os.Open("/modules/" + name)
		if err != nil {
			return err
		}
		_, _, errno := syscall.Syscall(sysFinitModule, file.Fd(), uintptr(unsafe.Pointer(&noParameters[0])), 0)
		if err := file.Close(); err != nil {
			return err
		}
		if errno != 0 && errno != syscall.EEXIST {
			return fmt.Errorf("cannot load %s: %w", name, errno)
		}
	}
	return nil
}

func waitForDisk(path string) error {
	for deadline := time.Now().Add(deviceTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("no disk %s within %v", path, deviceTimeout)
}

func enterRoot(image, layer string) error {
	if err := syscall.Mount(image, "/lower", "squashfs", syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("cannot mount the image: %w", err)
	}
	if err := syscall.Mount(layer, "/rw", "ext4", syscall.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("cannot mount the writable layer: %w", err)
	}
	for _, folder := range []string{"/rw/upper", "/rw/work"} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			return err
		}
	}
	folders := "lowerdir=/lower/rootfs,upperdir=/rw/upper,workdir=/rw/work"
	if err := syscall.Mount("overlay", "/newroot", "overlay", 0, folders); err != nil {
		return fmt.Errorf("cannot mount the overlay: %w", err)
	}
	if err := os.Chdir("/newroot"); err != nil {
		return err
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot move the root: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

func noteStage(name string) {
	const clockBoottime = 7 // linux/time.h; the call cannot fail for it
	var now syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&now)), 0)
	stages[name] = now.Nano() / 1e6
}
