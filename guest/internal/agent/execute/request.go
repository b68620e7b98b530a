package execute

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"bandsox.dev/guest/internal/agent/environment"
	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/agent/tools"
	"bandsox.dev/guest/internal/agent/users"
	"bandsox.dev/guest/internal/wire"
)

// request is an `exec` message with everything looked up that can be before a process exists.
type request struct {
	program   string
	argv      []string
	env       []string
	folder    string
	user      users.User
	wantStdin bool
	timeoutMs int64
	// stopSignal is 0 when nothing was said.
	stopSignal syscall.Signal
	// terminal is nil for a command with pipes.
	terminal *size
	// shown is what a person would call it.
	shown string
}

func newRequest(message wire.Message) (request, error) {
	r := request{
		argv:      message.Texts("argv"),
		folder:    "/",
		wantStdin: message.Flag("stdin", false),
		timeoutMs: message.Integer("timeoutMs", 0),
	}
	r.shown = strings.Join(r.argv, " ")
	if message.Has("shell") {
		r.shown = message.Text("shell")
		r.argv = []string{"/bin/sh", "-c", r.shown}
	}
	if message.Has("cwd") {
		r.folder = message.Text("cwd")
	}
	if name := message.Text("stopSignal"); name != "" {
		number, known := signalNumbers[name]
		if !known {
			return r, wire.Violatef(wire.MessageInvalid, "signal %.40q is not known", name)
		}
		r.stopSignal = number
	}
	if message.Has("pty") {
		dimensions := sizeOf(message.Object("pty"))
		r.terminal = &dimensions
	}
	var err error
	if r.user, err = users.Lookup(message.Text("user")); err != nil {
		return r, failure.Of(err, "cannot run a command as %q", message.Text("user"))
	}
	if message.Flag("makeCwd", false) {
		if err := os.MkdirAll(r.folder, 0o755); err != nil {
			return r, failure.Of(err, "cannot make %s to run a command in it", r.folder)
		}
	}
	if info, err := os.Stat(r.folder); err != nil || !info.IsDir() {
		return r, failure.New(failure.NoSuchFolder, "cannot run a command in %s: no such folder", r.folder)
	}
	var searchPath string
	r.env, searchPath = variables(r.user, message.TextMap("env"), r.terminal != nil)
	if message.Has("tool") {
		r.shown = strings.Join(message.Texts("tool"), " ")
		r.program, r.argv, err = tools.Program(message.Texts("tool"))
		return r, err
	}
	r.program, err = findProgram(r.argv[0], r.folder, searchPath, r.user)
	return r, err
}

// variables lays the request's over the agent's defaults, and gives PATH too.
func variables(user users.User, wanted map[string]string, atTerminal bool) (env []string, searchPath string) {
	values := environment.Of(user)
	if atTerminal {
		values["TERM"] = defaultTerm
	}
	for name, value := range wanted {
		values[name] = value
	}
	return environment.List(values), values["PATH"]
}

// findProgram looks a command up like execvp(3), for the user who will run it: the agent is root and may run more.
func findProgram(name, folder, searchPath string, user users.User) (string, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = candidates[:0]
		for _, dir := range filepath.SplitList(searchPath) {
			candidates = append(candidates, filepath.Join(dir, name)) // an empty part of PATH is the working folder
		}
	}
	var reason error
	for _, candidate := range candidates {
		if !filepath.IsAbs(candidate) {
			candidate = filepath.Join(folder, candidate)
		}
		info, err := os.Stat(candidate)
		switch {
		case name == "", errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		case err != nil:
			reason = failure.Of(err, "cannot run %s", candidate)
		case !info.Mode().IsRegular():
			reason = failure.New(failure.NotExecutable, "cannot run %s: not a regular file", candidate)
		case !mayExecute(info, user):
			reason = failure.New(failure.NotExecutable, "cannot run %s: %s has no right to execute it", candidate, user.Name)
		default:
			return candidate, nil
		}
	}
	if reason != nil {
		return "", reason
	}
	return "", failure.New(failure.CommandNotFound, "cannot run %q: no such command", name)
}

// mayExecute looks at the mode alone: rights of the folders above show when the kernel refuses.
func mayExecute(info os.FileInfo, user users.User) bool {
	mode := info.Mode().Perm()
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || user.UID == 0:
		return mode&0o111 != 0
	case stat.Uid == user.UID:
		return mode&0o100 != 0
	case stat.Gid == user.GID:
		return mode&0o010 != 0
	}
	for _, group := range user.Groups {
		if group == stat.Gid {
			return mode&0o010 != 0
		}
	}
	return mode&0o001 != 0
}

// startFailure names why fork or exec failed. The program was there and executable a moment ago, so what the kernel says now
// is about something else: an interpreter, a folder, memory.
func startFailure(err error, r request) error {
	switch {
	case errors.Is(err, reaper.ErrHeld):
		return failure.New(failure.Frozen, "cannot run %s: the machine's processes are frozen for a moment", r.program)
	case errors.Is(err, syscall.ENOENT):
		return failure.New(failure.NotExecutable, "cannot run %s: its interpreter or loader is missing", r.program)
	case errors.Is(err, syscall.EACCES):
		return failure.New(failure.PermissionDenied, "cannot run %s in %s as %s: permission denied", r.program, r.folder, r.user.Name)
	}
	return failure.Of(err, "cannot run %s", r.program)
}
