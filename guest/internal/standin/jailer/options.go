package jailer

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"bandsox.dev/guest/internal/standin/arguments"
)

// known are the jailer's arguments.
var known = []arguments.Argument{
	{Name: "id", TakesValue: true, IsRequired: true},
	{Name: "exec-file", TakesValue: true, IsRequired: true},
	{Name: "uid", TakesValue: true, IsRequired: true},
	{Name: "gid", TakesValue: true, IsRequired: true},
	{Name: "chroot-base-dir", TakesValue: true, Default: "/srv/jailer"},
	{Name: "netns", TakesValue: true},
	{Name: "daemonize"},
	{Name: "new-pid-ns"},
	{Name: "cgroup", IsRepeatable: true},
	{Name: "resource-limit", IsRepeatable: true},
	{Name: "cgroup-version", TakesValue: true, Default: "1"},
	{Name: "parent-cgroup", TakesValue: true},
	{Name: "version"},
}

// defaultOpenFiles is the limit of open files that the jailer sets when nobody says otherwise.
const defaultOpenFiles = 2048

// options are a command line that makes sense.
type options struct {
	id       string
	execFile string // without symbolic links
	root     string // of the jail
	uid, gid uint32
	netns    string
	// isDaemon leaves the session and the terminal; hasPidNamespace makes the program process 1 of its own.
	isDaemon, hasPidNamespace bool
	cgroups                   *cgroups // nil: none is made
	fileSize                  *uint64
	openFiles                 uint64
	rest                      []string // for the program
}

// readOptions checks in the jailer's order. As there, moving into a parent cgroup happens here, without a jail yet.
func readOptions(given *arguments.Arguments) (*options, error) {
	o := &options{
		id: given.Value("id"), netns: given.Value("netns"), isDaemon: given.Has("daemonize"), hasPidNamespace: given.Has("new-pid-ns"),
		openFiles: defaultOpenFiles, rest: given.Rest,
	}
	if err := arguments.CheckID(o.id); err != nil {
		return nil, fmt.Errorf("Invalid instance ID: %w", err)
	}
	if err := o.readPaths(given.Value("exec-file"), given.Value("chroot-base-dir")); err != nil {
		return nil, err
	}
	for name, into := range map[string]*uint32{"uid": &o.uid, "gid": &o.gid} {
		number, err := strconv.ParseUint(given.Value(name), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("Invalid %s: %s", name, given.Value(name))
		}
		*into = uint32(number)
	}
	if err := o.readCgroups(given); err != nil {
		return nil, err
	}
	return o, o.readLimits(given.Values("resource-limit"))
}

func (o *options) readPaths(execFile, base string) (err error) {
	if o.execFile, err = canonical(execFile); err != nil {
		return err
	}
	if info, err := os.Stat(o.execFile); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", o.execFile)
	}
	if base, err = canonical(base); err != nil {
		return err
	}
	if info, err := os.Stat(base); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is not a directory", base)
	}
	o.root = filepath.Join(base, o.execName(), o.id, "root")
	return nil
}

// execName is the program's own name, by which its jails and its pid file are called.
func (o *options) execName() string { return filepath.Base(o.execFile) }

func canonical(path string) (string, error) {
	found, err := filepath.EvalSymlinks(path)
	if err == nil {
		found, err = filepath.Abs(found)
	}
	if err != nil {
		return "", fmt.Errorf("Failed to canonicalize path %s: %s", path, osError(err))
	}
	return found, nil
}

func (o *options) readLimits(limits []string) error {
	for _, limit := range limits {
		name, text, isPair := strings.Cut(limit, "=")
		if !isPair {
			return fmt.Errorf("Invalid format for resources limits: %s", limit)
		}
		value, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return fmt.Errorf("Invalid limit value for resource: %s: invalid digit found in string", text)
		}
		switch name {
		case "fsize":
			o.fileSize = &value
		case "no-file":
			o.openFiles = value
		default:
			return fmt.Errorf("Invalid resource argument: %s", name)
		}
	}
	return nil
}

func (o *options) readCgroups(given *arguments.Arguments) error {
	parent := given.Value("parent-cgroup")
	if !given.Has("parent-cgroup") {
		parent = o.execName()
	}
	if leaves(parent) {
		return fmt.Errorf("Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'")
	}
	version, err := strconv.ParseUint(given.Value("cgroup-version"), 10, 8)
	if err != nil {
		return fmt.Errorf("%s is an invalid cgroup version specifier", given.Value("cgroup-version"))
	}
	settings := given.Values("cgroup")
	if len(settings) == 0 && version == 2 {
		return joinParent(parent)
	}
	if len(settings) == 0 {
		return nil
	}
	o.cgroups, err = newCgroups(int(version), filepath.Join(parent, o.id), strings.Count(parent, "/")+1, settings)
	return err
}

// leaves says whether a path is absolute, or has a part that is no name.
func leaves(path string) bool {
	if strings.HasPrefix(path, "/") || path == "." || strings.HasPrefix(path, "./") {
		return true
	}
	for _, part := range strings.Split(path, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}
