// Package jailer is a stand-in for Firecracker's jailer: the same command line, checks, layout, order and errors, which were read in
// its source and in docs/jailer.md (https://github.com/firecracker-microvm/firecracker). It must run as root.
//
// What it leaves out: the second fork of --daemonize, so that the program leads its session; an error of the exec in a new PID
// namespace is still told with status 0, but leaves no pid file; arm64's copies of /sys; and inherited descriptors are closed by the
// exec rather than before.
package jailer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/standin/arguments"
)

// Release is what this stands in for unless it is told otherwise.
const Release = "1.17.0"

const (
	releaseFlag = "--stand-in-version"
	faultFlag   = "--stand-in-fault"
)

// The steps at which a test can have it die or wait: before what the word says.
const (
	stepStart   = "start"
	stepFolder  = "folder"
	stepCopy    = "copy"
	stepNetwork = "netns"
	stepLimits  = "limits"
	stepCgroup  = "cgroup"
	stepEnter   = "chroot"
	stepFurnish = "devices"
	stepExecute = "exec"
)

// Run is the program, with the words after its name. It returns a status, or never: then this process is the program in the jail.
// The caller's goroutine must be locked to its thread: namespaces, root and identity are a thread's until it executes something.
func Run(words []string, output, failures io.Writer) int {
	runtime.LockOSThread()
	j := &jailer{release: Release, began: time.Now()}
	words, err := j.ownFlags(words)
	if err == nil {
		err = j.run(words, output)
	}
	if err != nil {
		fmt.Fprintln(failures, err)
		fmt.Fprintf(failures, "Error: %q\n", err.Error())
		return 1
	}
	return 0
}

type jailer struct {
	release         string
	crashAt, hangAt string
	began           time.Time
}

func (j *jailer) ownFlags(words []string) ([]string, error) {
	for len(words) >= 2 && (words[0] == releaseFlag || words[0] == faultFlag) {
		name, value, _ := strings.Cut(words[1], "=")
		switch {
		case words[0] == releaseFlag:
			j.release = strings.TrimPrefix(words[1], "v")
		case name == "crash-at":
			j.crashAt = value
		case name == "hang-at":
			j.hangAt = value
		default:
			return nil, fmt.Errorf("stand-in-jailer: there is no fault %q", words[1])
		}
		words = words[2:]
	}
	return words, nil
}

// stumble is where the faults of a step happen. A crash is one that nobody can clean up after.
func (j *jailer) stumble(step string) {
	if step == j.crashAt {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it cannot fail
	}
	if step == j.crashAt || step == j.hangAt {
		for {
			time.Sleep(time.Hour)
		}
	}
}

func (j *jailer) run(words []string, output io.Writer) error {
	if err := closeInherited(); err != nil {
		return fmt.Errorf("Failed to sanitize the Jailer process: Failed to call close range syscall: %s", osError(err))
	}
	given, err := arguments.Parse(words, known)
	if err != nil {
		return fmt.Errorf("Failed to parse arguments: %w", err)
	}
	if given.Has("help") || given.Has("version") {
		fmt.Fprintf(output, "Jailer v%s\n\n", j.release)
		return nil
	}
	j.stumble(stepStart)
	o, err := readOptions(given)
	if err != nil {
		return err
	}
	userfaultfd := userfaultfdMinor()
	devNull := -1
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{stepFolder, o.makeRoot},
		{stepCopy, o.copyProgram},
		{stepNetwork, o.joinNetwork},
		{stepLimits, o.setLimits},
		{stepCgroup, func() error {
			if o.cgroups == nil {
				return nil
			}
			return o.cgroups.setUp()
		}},
		{stepEnter, func() (err error) {
			if o.isDaemon {
				if devNull, err = syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err != nil {
					return fmt.Errorf("Failed to open /dev/null: %s", osError(err))
				}
			}
			return o.enter()
		}},
		{stepFurnish, func() error { return o.furnish(userfaultfd) }},
		{stepExecute, func() error { return o.execute(j.began, devNull) }},
	} {
		j.stumble(step.name)
		if err := step.do(); err != nil {
			return err
		}
	}
	return nil
}

// makeRoot takes a folder that is there as it is.
func (o *options) makeRoot() error {
	if err := os.MkdirAll(o.root, 0o777); err != nil {
		return fmt.Errorf("Failed to create directory %s: %s", o.root, osError(err))
	}
	return nil
}

// closeInherited lets no descriptor beyond stderr reach the program.
func closeInherited() error {
	const (
		first     = 3
		last      = 1<<32 - 1
		onExecute = 4 // CLOSE_RANGE_CLOEXEC: this program's runtime has descriptors of its own
	)
	_, _, errno := syscall.RawSyscall(sysCloseRange, first, last, onExecute)
	if errno != 0 {
		return errno
	}
	return nil
}

// execute becomes the program, or starts it and returns.
func (o *options) execute(began time.Time, devNull int) error {
	path := "/" + o.execName()
	argv := append([]string{
		path, "--id", o.id,
		"--start-time-us", strconv.FormatInt(monotonicUs(clockMonotonic)-time.Since(began).Microseconds(), 10),
		"--start-time-cpu-us", strconv.FormatInt(monotonicUs(clockProcess), 10),
		"--parent-cpu-time-us", strconv.FormatInt(monotonicUs(clockProcess), 10),
	}, o.rest...)
	if !o.isDaemon && !o.hasPidNamespace {
		if err := savePid(path, os.Getpid()); err != nil {
			return err
		}
		if err := o.drop(); err != nil {
			return fmt.Errorf("Failed to exec into Firecracker: %s", osError(err))
		}
		return fmt.Errorf("Failed to exec into Firecracker: %s", osError(syscall.Exec(path, argv, []string{})))
	}
	attributes := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: o.uid, Gid: o.gid}, Setsid: o.isDaemon || leadsSession()}
	files := []uintptr{0, 1, 2}
	if o.isDaemon {
		files = []uintptr{uintptr(devNull), uintptr(devNull), uintptr(devNull)}
	}
	if o.hasPidNamespace {
		attributes.Cloneflags = syscall.CLONE_NEWPID
	}
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: []string{}, Files: files, Sys: attributes})
	if err != nil {
		// The real one's child says it, and the parent has gone in peace.
		fmt.Fprintf(os.Stderr, "Failed to exec into Firecracker: %s\n", osError(err))
		return nil
	}
	return savePid(path, pid)
}

// drop takes on the user and group, and no others. It is the thread's: the exec makes it the program's.
func (o *options) drop() error {
	for _, call := range []struct{ number, argument uintptr }{
		{syscall.SYS_SETGID, uintptr(o.gid)}, {syscall.SYS_SETGROUPS, 0}, {syscall.SYS_SETUID, uintptr(o.uid)},
	} {
		if _, _, errno := syscall.RawSyscall(call.number, call.argument, 0, 0); errno != 0 {
			return errno
		}
	}
	return nil
}

// savePid writes beside the program which process it is, as this one sees it. A file that is there is an error.
func savePid(path string, pid int) error {
	path += ".pid"
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fmt.Errorf("Failed to open file %s: %s", path, osError(err))
	}
	_, err = file.WriteString(strconv.Itoa(pid))
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("Failed to write to %s: %s", path, osError(err))
	}
	return nil
}

func leadsSession() bool {
	session, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0)
	return errno == 0 && int(session) == os.Getpid()
}

// osError is an error of the system as Rust prints it.
func osError(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	text := errno.Error()
	return fmt.Sprintf("%s%s (os error %d)", strings.ToUpper(text[:1]), text[1:], int(errno))
}
