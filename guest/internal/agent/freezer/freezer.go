// Package freezer makes every process of the machine stand still but this one, and lets them go on: PROTOCOL.md section 9.
//
// It is done by control groups (cgroup v2, cgroup.freeze): processes notice nothing, neither by a signal nor by their parents. The root
// group cannot be frozen, so its processes are moved into one of our own, which is frozen already and in which they stand still as they
// arrive; groups that the guest's user has made, as docker does, are frozen where they are.
package freezer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/processes"
)

// Root is where the control groups are mounted at boot.
const Root = "/sys/fs/cgroup"

const (
	ownName = "bandsox-frozen"
	// maxPasses bounds the search for new processes against those that fork as fast as they are moved.
	maxPasses = 100
	maxGroups = 4096
	maxDepth  = 16
	// patience is how long the kernel may take: a process in the middle of a system call that cannot be cut short stands still after it.
	patience  = 2 * time.Second
	firstPoll = 200 * time.Microsecond
	mostPoll  = 10 * time.Millisecond
)

// Freezer freezes. It is not for several goroutines at once.
type Freezer struct {
	root group
	own  group
	// frozen are the groups that were frozen where they are, by name; nil: nothing is frozen.
	frozen map[string]group
	self   int // this process
	// belongs says whether a process of the root group is to be frozen.
	belongs func(pid int) bool
}

// Open takes hold of the control groups, which the guest's user may mount elsewhere later.
func Open(path string) (*Freezer, error) {
	root, err := openGroup(path)
	if err != nil {
		return nil, fmt.Errorf("cannot freeze processes: %w", err)
	}
	if _, err := root.read("cgroup.procs"); err != nil { // another kind of folder
		root.close()
		return nil, fmt.Errorf("cannot freeze processes by %s: %w", path, err)
	}
	return &Freezer{root: root, self: os.Getpid(), belongs: isOfUser}, nil
}

// isOfUser tells user processes from the kernel's threads, which have no session and need not stand still.
func isOfUser(pid int) bool { return processes.SessionOf(pid) != 0 }

// IsFrozen says whether Freeze was called, and Thaw was not yet.
func (f *Freezer) IsFrozen() bool { return f.frozen != nil }

// Freeze makes all stand still, gives their number, and says what was not as it should be. An error says that nothing is frozen.
func (f *Freezer) Freeze() (count int, warnings []string, err error) {
	// A user who keeps the root group empty, as docker in docker does, has moved this process as well: it must not freeze itself.
	if err := f.root.write("cgroup.procs", "0"); err != nil {
		return 0, nil, fmt.Errorf("cannot leave a control group: %w", err)
	}
	if f.own, err = f.root.makeChild(ownName); err != nil {
		return 0, nil, fmt.Errorf("cannot make a control group: %w", err)
	}
	f.frozen = map[string]group{}
	if err := f.own.write("cgroup.freeze", "1"); err != nil {
		for _, problem := range f.Thaw() {
			console.Printf("%s", problem)
		}
		return 0, nil, fmt.Errorf("cannot freeze a control group: %w", err)
	}
	warnings = f.gather()
	groups := append([]group{f.own}, f.groups()...)
	warnings = append(warnings, waitUntilFrozen(groups)...)
	for _, g := range groups {
		count += countIn(g, 0)
	}
	return count, warnings, nil
}

// gather takes in who is not frozen yet, until nobody new appears: who is not frozen may fork.
func (f *Freezer) gather() (warnings []string) {
	left := map[int]bool{} // what cannot be moved
	for pass := 0; pass < maxPasses; pass++ {
		pids, err := f.root.processes()
		if err != nil {
			return append(warnings, fmt.Sprintf("cannot list processes: %v", err))
		}
		isNew := false
		for _, pid := range pids {
			if pid == f.self || left[pid] || !f.belongs(pid) {
				continue
			}
			isNew = true
			if err := f.own.write("cgroup.procs", strconv.Itoa(pid)); err != nil && err != syscall.ESRCH {
				left[pid] = true
				warnings = append(warnings, fmt.Sprintf("cannot freeze process %d: %v", pid, err))
			}
		}
		found, err := f.freezeGroups()
		if err != nil {
			return append(warnings, fmt.Sprintf("cannot freeze the control groups: %v", err))
		}
		if !isNew && !found {
			return warnings
		}
	}
	return append(warnings, "new processes appear as fast as they are frozen")
}

// freezeGroups freezes the groups that somebody else has made, and says whether there was a new one. What its owner has frozen stays so.
func (f *Freezer) freezeGroups() (found bool, err error) {
	names, err := f.root.children(maxGroups)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if _, known := f.frozen[name]; known || name == ownName {
			continue
		}
		g, err := f.root.child(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return found, err
		}
		state, err := g.read("cgroup.freeze")
		if err == nil && strings.TrimSpace(state) == "0" {
			found = true
			f.frozen[name] = g
			err = g.write("cgroup.freeze", "1")
		} else {
			g.close()
		}
		if err != nil && !errors.Is(err, syscall.ENODEV) && !errors.Is(err, os.ErrNotExist) { // it was removed meanwhile
			return found, err
		}
	}
	return found, nil
}

func (f *Freezer) groups() []group {
	groups := make([]group, 0, len(f.frozen))
	for _, g := range f.frozen {
		groups = append(groups, g)
	}
	return groups
}

func waitUntilFrozen(groups []group) (warnings []string) {
	deadline := time.Now().Add(patience)
	pause := firstPoll
	for _, g := range groups {
		for {
			still, err := g.isFrozen()
			if still || err != nil { // removed, and so empty
				break
			}
			if time.Now().After(deadline) {
				warnings = append(warnings, fmt.Sprintf("some processes of the control group %s still run after %v", g.folder.Name(), patience))
				break
			}
			time.Sleep(pause)
			if pause *= 2; pause > mostPoll {
				pause = mostPoll
			}
		}
	}
	return warnings
}

// countIn counts the processes of a group and of those inside it.
func countIn(g group, depth int) int {
	pids, err := g.processes()
	if err != nil {
		return 0 // removed meanwhile
	}
	count := len(pids)
	names, err := g.children(maxGroups)
	if err != nil || depth == maxDepth {
		return count
	}
	for _, name := range names {
		if inner, err := g.child(name); err == nil {
			count += countIn(inner, depth+1)
			inner.close()
		}
	}
	return count
}

// Thaw lets all go on, and says what stood in the way. Harmless when nothing is frozen.
func (f *Freezer) Thaw() (problems []string) {
	if f.frozen == nil {
		return nil
	}
	for name, g := range f.frozen {
		if err := g.write("cgroup.freeze", "0"); err != nil && !errors.Is(err, syscall.ENODEV) {
			problems = append(problems, fmt.Sprintf("cannot thaw the control group %s: %v", name, err))
		}
		g.close()
	}
	f.frozen = nil
	// Each goes on as it is back in the root group, so nobody sees where it was.
	problems = append(problems, f.scatter()...)
	// Whoever could not be moved back goes on where it is.
	if err := f.own.write("cgroup.freeze", "0"); err != nil {
		problems = append(problems, fmt.Sprintf("cannot thaw a control group: %v", err))
	}
	f.own.close()
	if err := f.root.removeChild(ownName); err != nil {
		problems = append(problems, fmt.Sprintf("cannot remove a control group: %v", err))
	}
	return problems
}

func (f *Freezer) scatter() (problems []string) {
	left := map[int]bool{}
	for pass := 0; pass < maxPasses; pass++ {
		pids, err := f.own.processes()
		if err != nil {
			return append(problems, fmt.Sprintf("cannot list frozen processes: %v", err))
		}
		isNew := false
		for _, pid := range pids {
			if left[pid] {
				continue
			}
			isNew = true
			if err := f.root.write("cgroup.procs", strconv.Itoa(pid)); err != nil && err != syscall.ESRCH {
				left[pid] = true
				problems = append(problems, fmt.Sprintf("cannot move process %d back: %v", pid, err))
			}
		}
		if !isNew {
			return problems
		}
	}
	return problems
}
