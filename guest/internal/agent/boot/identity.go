package boot

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/identity"
	"bandsox.dev/guest/internal/agent/users"
)

// Identify gives the machine its name and the files that programs look names up in.
func Identify(config Config) {
	if err := syscall.Sethostname([]byte(config.Hostname)); err != nil {
		console.Printf("cannot set the host name %q: %v", config.Hostname, err)
	}
	if err := raiseLoopback(); err != nil {
		console.Printf("cannot raise the loopback interface: %v", err)
	}
	if err := makeFolder("/etc", 0o755); err != nil {
		console.Printf("cannot make /etc: %v", err)
		return
	}
	name := config.Hostname + "\n"
	if current, err := os.ReadFile("/etc/hostname"); err != nil || string(current) != name {
		writeEtc("/etc/hostname", name)
	}
	if isEmpty("/etc/hosts") {
		writeEtc("/etc/hosts", UsualHosts+ownAddress+name)
	} else if hosts, err := os.ReadFile("/etc/hosts"); err == nil && !isNamed(string(hosts), config.Hostname) {
		// Programs look up their own name (sudo, Java, Erlang, ...) and wait for a name server when nothing knows it.
		writeEtc("/etc/hosts", strings.TrimRight(string(hosts), "\n")+"\n"+ownAddress+name)
	}
	if len(config.DNS) > 0 && isEmpty("/etc/resolv.conf") {
		writeEtc("/etc/resolv.conf", "nameserver "+strings.Join(config.DNS, "\nnameserver ")+"\n")
	}
}

// isNamed says whether a hosts file knows a name; hosts(5).
func isNamed(hosts, name string) bool {
	for _, line := range strings.Split(hosts, "\n") {
		if comment := strings.IndexByte(line, '#'); comment >= 0 {
			line = line[:comment]
		}
		fields := strings.Fields(line)
		for i, field := range fields {
			if i > 0 && field == name {
				return true
			}
		}
	}
	return false
}

// isEmpty is true of what is missing, of a link that leads nowhere, and of a file without content, as container builders
// leave behind.
func isEmpty(path string) bool {
	info, err := os.Stat(path)
	return err != nil || info.Mode().IsRegular() && info.Size() == 0
}

// writeEtc replaces a file, or a link that leads nowhere.
func writeEtc(path, content string) {
	if err := identity.Replace(path, content, 0o644); err != nil {
		console.Printf("%v", err)
	}
}

// raiseLoopback sets IFF_UP on lo (netdevice(7)); the kernel then gives it 127.0.0.1 and ::1 itself.
func raiseLoopback() error {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(socket) // nothing was sent: its error has nothing to tell
	request := struct {         // struct ifreq
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{flags: syscall.IFF_UP | syscall.IFF_RUNNING}
	copy(request.name[:], "lo")
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(socket), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("SIOCSIFFLAGS: %w", errno)
	}
	return nil
}

// SetLimits sets what commands inherit. The kernel's own for process 1 are lower than any distribution's: 1024 open files
// with a hard limit of 4096, where servers expect to raise it.
func SetLimits() {
	for _, limit := range []struct {
		name       string
		resource   int
		soft, hard uint64
	}{
		{"open files", syscall.RLIMIT_NOFILE, 65536, 1048576},
		{"core files", syscall.RLIMIT_CORE, 0, unlimited},
	} {
		if err := syscall.Setrlimit(limit.resource, &syscall.Rlimit{Cur: limit.soft, Max: limit.hard}); err != nil {
			console.Printf("cannot set the limit of %s: %v", limit.name, err)
		}
	}
}

// JoinGroups gives the agent root's groups, so that a command of root's needs no credentials of its own.
func JoinGroups() {
	root, err := users.Lookup("root")
	if err == nil {
		groups := make([]int, len(root.Groups))
		for i, group := range root.Groups {
			groups[i] = int(group)
		}
		err = syscall.Setgroups(groups)
	}
	if err != nil {
		console.Printf("cannot join root's groups: %v", err) // its commands get them all the same, a little later
	}
}

const unlimited = ^uint64(0) // RLIM_INFINITY
