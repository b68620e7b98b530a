// Package hooks runs the image's own programs at the moments that PROTOCOL.md section 9 names.
package hooks

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/environment"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/agent/users"
)

// Folder holds snapshot.d and restore.d.
const Folder = "/etc/bandsox/hooks"

const (
	// tailBytes is how much of a hook's output is kept, and shownBytes how much of that is told: an error has 4096 bytes in all.
	tailBytes  = 4096
	shownBytes = 3000
	// maxHooks bounds a folder that holds other things.
	maxHooks = 256
	// stragglerGrace is how long children that a hook has left behind may still write.
	stragglerGrace = 100 * time.Millisecond
	// killGrace is how long a killed hook may take to be gone: one in the kernel is left to itself.
	killGrace = time.Second
)

// Runner runs the hooks of one folder.
type Runner struct {
	// Folder holds a folder of hooks for each moment; "": there are none.
	Folder string
	Reaper *reaper.Reaper
	// Stop kills the hooks that run when it is closed.
	Stop <-chan struct{}
}

// Failure is a hook that did not do its work.
type Failure struct {
	Hook string
	How  string
	Tail string // the end of its output
}

func (f *Failure) Error() string {
	text := fmt.Sprintf("the hook %s %s", f.Hook, f.How)
	if f.Tail != "" {
		text += ": " + f.Tail
	}
	return text
}

// Run runs the hooks of a moment in the order of their names, until the deadline. After one that failed it goes on if andGoOn says so.
func (r Runner) Run(moment string, deadline time.Time, andGoOn bool) []*Failure {
	if r.Folder == "" {
		return nil
	}
	folder := filepath.Join(r.Folder, moment+".d")
	found, err := list(folder)
	if err != nil {
		return []*Failure{{Hook: folder, How: fmt.Sprintf("cannot be looked for: %v", err)}}
	}
	if len(found) == 0 {
		return nil
	}
	root, err := users.Lookup("root")
	if err != nil {
		root = users.User{Name: "root", Home: "/root"} // an unreadable /etc/passwd is the hooks' own affair
	}
	values := environment.Of(root)
	values["BANDSOX_HOOK"] = moment
	env := environment.List(values)
	var failures []*Failure
	for _, hook := range found {
		if failure := r.run(filepath.Join(folder, hook), env, deadline); failure != nil {
			failures = append(failures, failure)
			if !andGoOn {
				break
			}
		}
	}
	return failures
}

// list gives the executable files of a folder by name. What begins with a dot is not one, nor are an editor's leftovers.
func list(folder string) ([]string, error) {
	opened, err := os.Open(folder)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer opened.Close() // read only: its error has nothing to tell
	names, err := opened.Readdirnames(maxHooks + 1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(names) > maxHooks {
		return nil, fmt.Errorf("it holds more than %d files", maxHooks)
	}
	sort.Strings(names)
	var hooks []string
	for _, name := range names {
		info, err := os.Stat(filepath.Join(folder, name))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") {
			continue
		}
		hooks = append(hooks, name)
	}
	return hooks, nil
}

// run runs one hook. Nothing is inherited from the agent but its output.
func (r Runner) run(path string, env []string, deadline time.Time) *Failure {
	name := filepath.Base(path)
	left := time.Until(deadline)
	if left <= 0 {
		return &Failure{Hook: name, How: "was not run: the time for all hooks is over"}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return &Failure{Hook: name, How: fmt.Sprintf("cannot be run: %v", err)}
	}
	defer null.Close()
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return &Failure{Hook: name, How: fmt.Sprintf("cannot be run: %v", err)}
	}
	if err := syscall.SetNonblock(ends[0], true); err != nil {
		panic(err) // of a pipe just made: only a bug
	}
	output := os.NewFile(uintptr(ends[0]), "hook output")
	child, err := r.Reaper.Start(reaper.Program{Path: path, Argv: []string{path}, EvenHeld: true}, &syscall.ProcAttr{
		Dir: "/", Env: env, Files: []uintptr{null.Fd(), uintptr(ends[1]), uintptr(ends[1])},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = syscall.Close(ends[1]) // the hook has its own
	if err != nil {
		_ = output.Close()
		return &Failure{Hook: name, How: fmt.Sprintf("cannot be run: %v", err)}
	}
	defer syscall.Close(child.PidFD)
	tail := make(chan string, 1)
	go func() {
		defer console.Contain("reading a hook's output", func() { tail <- "" })
		tail <- readTail(output)
	}()
	how := r.wait(child, left)
	_ = output.SetReadDeadline(time.Now().Add(stragglerGrace)) // a pipe on the poller takes it
	said := <-tail
	_ = output.Close()
	if how == "" {
		return nil
	}
	return &Failure{Hook: name, How: how, Tail: said}
}

// wait says how a hook ended, "" if well.
func (r Runner) wait(child *reaper.Child, left time.Duration) string {
	timer := time.NewTimer(left)
	defer timer.Stop()
	how := ""
	select {
	case <-child.Ended():
		status := child.Status()
		switch {
		case status.Signaled():
			return fmt.Sprintf("was ended by signal %d", status.Signal())
		case status.ExitStatus() != 0:
			return fmt.Sprintf("ended with status %d", status.ExitStatus())
		}
		return ""
	case <-timer.C:
		how = fmt.Sprintf("did not end within the %v that were left for it, and was killed", left.Round(time.Millisecond))
	case <-r.Stop:
		how = "was killed, since the machine stops"
	}
	if _, err := child.SignalGroup(syscall.SIGKILL); err != nil {
		console.Printf("cannot kill a hook: %v", err)
	}
	select {
	case <-child.Ended():
	case <-time.After(killGrace):
	}
	return how
}

// readTail reads to the end, or the deadline, and gives the last that was said.
func readTail(output io.Reader) string {
	var tail []byte
	chunk := make([]byte, tailBytes)
	for {
		n, err := output.Read(chunk)
		tail = append(tail, chunk[:n]...)
		if over := len(tail) - tailBytes; over > 0 {
			tail = append(tail[:0], tail[over:]...)
		}
		if err != nil {
			break
		}
	}
	text := strings.ReplaceAll(strings.TrimSpace(string(tail)), "\n", " / ") // it becomes part of a sentence
	if len(text) > shownBytes {
		text = "…" + text[len(text)-shownBytes:]
	}
	return text
}
