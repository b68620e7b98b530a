package launch

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"bandsox.dev/guest/internal/shim/cgroup"
	"bandsox.dev/guest/internal/shim/config"
	"bandsox.dev/guest/internal/shim/onefile"
)

// Numbers that package syscall does not have.
const (
	prSetNoNewPrivs = 38 // PR_SET_NO_NEW_PRIVS of prctl(2)
	rlimitProcesses = 6  // RLIMIT_NPROC of setrlimit(2)
)

// Become turns this process, a launcher, into the program of the part. It returns only the status to exit with.
func Become(part string) int {
	// Limits belong to the process, but no_new_privs to the thread that execs.
	runtime.LockOSThread()
	settings, err := config.Read()
	if err != nil {
		// Without the configuration the gate's number is unknown. The shim has read the same file, so this is a broken disk.
		fmt.Fprintln(os.Stderr, "bandsox-shim:", err)
		return 1
	}
	var gate int
	var argv []string
	folder := ""
	switch {
	case part == VMM:
		gate, argv, folder = firstFile+len(settings.Files), settings.VMM.Argv, settings.VMM.Folder
	case part == Vsock && settings.Vsock != nil:
		gate, argv = firstFile, settings.Vsock.Argv
	default:
		fmt.Fprintf(os.Stderr, "bandsox-shim: %s has no program %q\n", config.FileName, part)
		return 1
	}
	if err := becomeProgram(gate, argv, folder, settings, part == VMM); err != nil {
		_, err = syscall.Write(gate, []byte(err.Error()))
		if err != nil {
			fmt.Fprintln(os.Stderr, "bandsox-shim: gate:", err)
		}
	}
	return 1
}

// becomeProgram passes the gate and execs; a nil error means that the shim is gone or gave up.
func becomeProgram(gate int, argv []string, folder string, settings *config.Config, isVMM bool) error {
	// All that can be done before is done while the shim is still busy. What fails is told when the gate opens: the shim looks at
	// the launcher before it listens.
	path, preparing := prepareProgram(gate, argv[0], folder, settings)
	opened, err := waitAtGate(gate)
	if err != nil || !opened {
		return err
	}
	if preparing != nil {
		return preparing
	}
	if isVMM && settings.VMM.ReadOnly != "" {
		if err := passListener(gate); err != nil {
			return err
		}
	}
	env := make([]string, 0, len(settings.VMM.Env))
	for name, value := range settings.VMM.Env {
		env = append(env, name+"="+value)
	}
	return fmt.Errorf("cannot start %s: %w", path, syscall.Exec(path, argv, env))
}

// passListener has the kernel ask the shim from now on about the one file; see package onefile.
func passListener(gate int) error {
	listener, err := onefile.Install()
	if err != nil {
		return err
	}
	return syscall.Sendmsg(gate, []byte{listenerMark}, syscall.UnixRights(listener), nil, 0)
}

// prepareProgram makes of this process all that the program is to be but the program, and returns the program's path.
func prepareProgram(gate int, program, folder string, settings *config.Config) (string, error) {
	if err := closeOnExecFrom(gate); err != nil {
		return "", err
	}
	if folder != "" {
		if err := os.Chdir(folder); err != nil {
			return "", err
		}
	}
	// Looked up on the shim's own PATH: the program's environment need not have one.
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("cannot start %s: %w", program, err)
	}
	// An ignored signal stays ignored across exec, a handled one does not: what the starter ignored is not the program's affair.
	for _, each := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE} {
		if signal.Ignored(each) {
			signal.Notify(make(chan os.Signal, 1), each)
		}
	}
	if settings.Cgroup != nil {
		if err := cgroup.Enter(settings.Cgroup.Folder); err != nil {
			return "", fmt.Errorf("cannot put %s into its control group: %w", program, err)
		}
	}
	if err := confine(settings.VMM); err != nil {
		return "", fmt.Errorf("cannot confine %s: %w", program, err)
	}
	return path, nil
}

// confine sets limits, drops privileges and sees that none can be won back.
func confine(settings config.VMM) error {
	files := syscall.Rlimit{Cur: settings.MaxFiles, Max: settings.MaxFiles}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("limit of %d files: %w", settings.MaxFiles, err)
	}
	// A core file would hold the guest's memory.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("limit of core files: %w", err)
	}
	if settings.MaxProcesses != 0 {
		processes := syscall.Rlimit{Cur: settings.MaxProcesses, Max: settings.MaxProcesses}
		if err := syscall.Setrlimit(rlimitProcesses, &processes); err != nil {
			return fmt.Errorf("limit of %d processes: %w", settings.MaxProcesses, err)
		}
	}
	if err := dropTo(settings); err != nil {
		return err
	}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	return nil
}

func dropTo(settings config.VMM) error {
	// Root's own groups are dropped even where it stays root; for others the kernel refuses, which is an error if groups were asked for.
	if os.Geteuid() == 0 || len(settings.Groups) > 0 {
		groups := make([]int, 0, len(settings.Groups))
		for _, group := range settings.Groups {
			groups = append(groups, int(group))
		}
		if err := syscall.Setgroups(groups); err != nil {
			return fmt.Errorf("groups %v: %w", groups, err)
		}
	}
	if settings.UID == nil {
		return nil
	}
	uid, gid := int(*settings.UID), int(*settings.GID)
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("gid %d: %w", gid, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("uid %d: %w", uid, err)
	}
	return nil
}

// waitAtGate returns true when the shim opens, false when it is gone or gave up.
func waitAtGate(gate int) (opened bool, err error) {
	for {
		n, err := syscall.Read(gate, make([]byte, 1))
		if err == syscall.EINTR {
			continue
		}
		return n == 1, err
	}
}

// closeOnExecFrom sees to it that the program has no descriptor from first on, whatever the starter of the shim let it inherit.
func closeOnExecFrom(first int) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			return fmt.Errorf("/proc/self/fd: %w", err)
		}
		if fd >= first {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}
