package jailer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

const mountsFile = "/proc/mounts"

// cgroupMount is a line of /proc/mounts: folder, 2 or nothing, options.
var cgroupMount = regexp.MustCompile(`^[a-z2]*\s(.*)\scgroup(2?)\s(.*)\s0\s0$`)

// cgroups are those that a machine gets, by their folders.
type cgroups struct {
	version  int
	depth    int // of the parent, from the hierarchy's root
	settings map[string][]cgroupSetting
}

type cgroupSetting struct{ file, value string }

// hierarchies finds the mounted ones of a version: for 1 by controller, for 2 by "".
func hierarchies(version int) (map[string]string, error) {
	text, err := os.ReadFile(mountsFile)
	if err != nil {
		return nil, fmt.Errorf("Failed to open file %s: %s", mountsFile, osError(err))
	}
	found := map[string]string{}
	for _, line := range strings.Split(string(text), "\n") {
		parts := cgroupMount.FindStringSubmatch(line)
		switch {
		case parts == nil:
		case version == 2 && parts[2] == "2":
			return map[string]string{"": parts[1]}, nil
		case version == 1 && parts[2] == "":
			for _, option := range strings.Split(parts[3], ",") {
				if found[option] == "" {
					found[option] = parts[1]
				}
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("Hierarchy not found: No hierarchy found for this cgroup version.")
	}
	return found, nil
}

// joinParent moves this process into a cgroup of version 2 that somebody has made before; one that is not there is no error.
func joinParent(parent string) error {
	found, err := hierarchies(2)
	if err != nil {
		return err
	}
	folder := filepath.Join(found[""], parent)
	if _, err := os.Stat(folder); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(folder, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return fmt.Errorf("Failed to move process to cgroup (%s): %s.\nHint: If you intended to create a child cgroup under %s, pass any "+
			"--cgroup parameters.", folder, osError(err), folder)
	}
	return nil
}

// newCgroups checks settings of the form FILE=VALUE; nothing is made yet.
func newCgroups(version int, path string, depth int, settings []string) (*cgroups, error) {
	if version != 1 && version != 2 {
		return nil, errors.New("Hierarchy not found: No hierarchy found for this cgroup version.")
	}
	found, err := hierarchies(version)
	if err != nil {
		return nil, err
	}
	c := &cgroups{version: version, depth: depth, settings: map[string][]cgroupSetting{}}
	for _, setting := range settings {
		parts := strings.Split(setting, "=")
		if len(parts) != 2 || parts[1] == "" {
			return nil, fmt.Errorf("Invalid format for cgroups: %s", setting)
		}
		controller, _, isFile := strings.Cut(parts[0], ".")
		if !isFile || leaves(parts[0]) {
			return nil, fmt.Errorf("Cgroup invalid file: %s", setting)
		}
		root, isMounted := found[controller]
		if version == 2 {
			root, isMounted = found[""], isAvailable(found[""], controller)
		}
		if !isMounted {
			return nil, fmt.Errorf("Controller %s is unavailable", controller)
		}
		folder := filepath.Join(root, path)
		c.settings[folder] = append(c.settings[folder], cgroupSetting{parts[0], parts[1]})
	}
	return c, nil
}

func isAvailable(root, controller string) bool {
	text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return false // so the jailer takes it, too
	}
	for _, one := range strings.Fields(string(text)) {
		if one == controller {
			return true
		}
	}
	return false
}

// setUp makes the folders, writes the values, and then moves this process into all of them.
func (c *cgroups) setUp() error {
	folders := make([]string, 0, len(c.settings))
	for folder := range c.settings {
		folders = append(folders, folder)
	}
	sort.Strings(folders)
	for _, folder := range folders {
		if err := os.MkdirAll(folder, 0o777); err != nil {
			return fmt.Errorf("Failed to create directory %s: %s", folder, osError(err))
		}
		for _, setting := range c.settings[folder] {
			if err := c.set(folder, setting); err != nil {
				return err
			}
		}
	}
	members := map[int]string{1: "tasks", 2: "cgroup.procs"}[c.version]
	for _, folder := range folders {
		if err := writeLine(filepath.Join(folder, members), strconv.Itoa(os.Getpid())); err != nil {
			return err
		}
	}
	return nil
}

func (c *cgroups) set(folder string, setting cgroupSetting) (err error) {
	if c.version == 1 {
		err = inherit(folder, setting.file, c.depth)
	} else {
		controller, _, _ := strings.Cut(setting.file, ".")
		err = enable(filepath.Dir(folder), controller)
	}
	if err != nil {
		return err
	}
	return writeLine(filepath.Join(folder, setting.file), setting.value)
}

// enable lets a folder's children have a controller of version 2, its own parents first.
func enable(folder, controller string) error {
	control := filepath.Join(folder, "cgroup.subtree_control")
	if _, err := os.Stat(control); err != nil {
		return nil // above the hierarchy
	}
	if err := enable(filepath.Dir(folder), controller); err != nil {
		return err
	}
	return writeLine(control, "+"+controller)
}

// inherit copies a value of version 1 from the parent, which gets it from its own when it has none.
func inherit(folder, file string, depth int) error {
	parent := filepath.Dir(folder)
	value, err := readLine(filepath.Join(parent, file))
	if err != nil {
		return err
	}
	if value == "" && depth > 0 {
		_ = inherit(parent, file, depth-1) // what counts is whether there is a value now: another jailer may have put it there
		if value, err = readLine(filepath.Join(parent, file)); err != nil {
			return err
		}
	}
	if value == "" {
		return fmt.Errorf("Failed to inherit cgroups configurations from file %s in path %s", file, folder)
	}
	return writeLine(filepath.Join(folder, file), value)
}

func readLine(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("Failed to read file %s into a string: %s", path, osError(err))
	}
	return strings.TrimSuffix(string(text), "\n"), nil
}

func writeLine(path, value string) error {
	if err := os.WriteFile(path, []byte(value+"\n"), 0o666); err != nil {
		return fmt.Errorf("Failed to write to %s: %s", path, osError(err))
	}
	return nil
}
