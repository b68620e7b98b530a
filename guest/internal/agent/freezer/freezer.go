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
	"sync"
	"syscall"
	"time"

	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/agent/processes"
)

// Root is where the control groups are mounted at boot.
const Root = "/sys/fs/cgroup"

const (
	ownName = "bandsox-frozen"
	// quickPasses is how often processes are looked for without a pause. (The first pass finds nearly all, and a second that there are no more.)
	quickPasses = 5
	maxGroups   = 4096
	maxDepth    = 16
	// patience is how long the kernel may take: a process in the middle of a system call that cannot be cut short stands still after it.
	patience  = 2 * time.Second
	firstPoll = 200 * time.Microsecond
	mostPoll  = 10 * time.Millisecond
)

// Freezer freezes.
type Freezer struct {
	// mutex is held until what a thaw has left to do is done.
	mutex sync.Mutex
	root  group
	own   group
	// frozen are the groups that were frozen where they are, by name; nil: nothing is frozen.
	frozen  map[string]group
	threads []thread
	self    int // this process
	// belongs says whether a process of the root group is to be frozen.
	belongs func(pid int) bool
}

// thread is one of the kernel's, which a user has put into a group and which was taken out of it: the kernel never calls a group frozen
// that has one in it.
type thread struct {
	pid  int
	home group
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

// Freeze makes all stand still, gives their number, and says what was not as it should be. An error says that nothing is frozen.
func (f *Freezer) Freeze() (count int, warnings []string, err error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.frozen != nil {
		return 0, nil, errors.New("frozen already")
	}
	// A user who keeps the root group empty, as docker in docker does, has moved this process as well: it must not freeze itself.
	if err := f.root.write("cgroup.procs", "0"); err != nil {
		return 0, nil, fmt.Errorf("cannot leave a control group: %w", err)
	}
	if f.own, err = f.root.makeChild(ownName); err != nil {
		return 0, nil, fmt.Errorf("cannot make a control group: %w", err)
	}
	f.frozen = map[string]group{}
	if err := f.own.write("cgroup.freeze", "1"); err != nil {
		f.release()
		f.tidy()
		return 0, nil, fmt.Errorf("cannot freeze a control group: %w", err)
	}
	warnings = f.gather()
	groups := append([]group{f.own}, f.groups()...)
	warnings = append(warnings, f.waitUntilFrozen(groups)...)
	for _, g := range groups {
		count += countIn(g, 0)
	}
	return count, warnings, nil
}

// gather takes in who is not frozen yet, until nobody new appears: who is not frozen may fork.
func (f *Freezer) gather() (warnings []string) {
	left := map[int]bool{} // what cannot be moved
	deadline := time.Now().Add(patience)
	for pass := 0; time.Now().Before(deadline); pass++ {
		if pass >= quickPasses {
			time.Sleep(firstPoll) // who is just ending is listed until it has
		}
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
			f.takeThreads(g, 0)
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

func (f *Freezer) waitUntilFrozen(groups []group) (warnings []string) {
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

// takeThreads moves the kernel's own threads out of a group, and of those inside it, before it is frozen: the kernel does not look again
// when one leaves. Those that cannot be moved are left.
func (f *Freezer) takeThreads(g group, depth int) {
	pids, err := g.processes()
	if err != nil {
		return // removed meanwhile
	}
	for _, pid := range pids {
		if isOfUser(pid) || f.root.write("cgroup.procs", strconv.Itoa(pid)) != nil {
			continue
		}
		if home, err := g.child("."); err == nil {
			f.threads = append(f.threads, thread{pid, home})
		}
	}
	g.eachInside(depth, func(inner group) { f.takeThreads(inner, depth+1) })
}

// countIn counts the processes of a group and of those inside it.
func countIn(g group, depth int) int {
	pids, err := g.processes()
	if err != nil {
		return 0 // removed meanwhile
	}
	count := len(pids)
	g.eachInside(depth, func(inner group) { count += countIn(inner, depth+1) })
	return count
}

// eachInside visits the groups inside one, as far as there are not too many below each other.
func (g group) eachInside(depth int, visit func(inner group)) {
	names, err := g.children(maxGroups)
	if err != nil || depth == maxDepth {
		return
	}
	for _, name := range names {
		if inner, err := g.child(name); err == nil {
			visit(inner)
			inner.close()
		}
	}
}

// Thaw lets all go on. Harmless when nothing is frozen. Moving a process between groups takes the kernel a while, for which nobody should
// stand still: so that is done behind it. Whoever looks meanwhile sees that it is in a group of ours.
func (f *Freezer) Thaw() {
	f.mutex.Lock()
	if f.frozen == nil {
		f.mutex.Unlock()
		return
	}
	f.release()
	go func() {
		defer f.mutex.Unlock()
		defer console.Contain("moving thawed processes back")
		f.tidy()
	}()
}

func complain(err error, format string, args ...interface{}) {
	if err != nil && !errors.Is(err, syscall.ENODEV) && !errors.Is(err, os.ErrNotExist) { // the group was removed
		console.Printf("cannot %s: %v", fmt.Sprintf(format, args...), err)
	}
}

// release lets everybody go on.
func (f *Freezer) release() {
	complain(f.own.write("cgroup.freeze", "0"), "thaw a control group")
	for name, g := range f.frozen {
		complain(g.write("cgroup.freeze", "0"), "thaw the control group %s", name)
		g.close()
	}
	f.frozen = nil
}

// tidy moves everybody back.
func (f *Freezer) tidy() {
	for _, t := range f.threads {
		complain(t.home.write("cgroup.procs", strconv.Itoa(t.pid)), "move a kernel thread back")
		t.home.close()
	}
	f.threads = nil
	var err error
	for deadline := time.Now().Add(patience); ; time.Sleep(mostPoll) {
		f.scatter()
		if err = f.root.removeChild(ownName); err != syscall.EBUSY || time.Now().After(deadline) {
			break // busy: somebody in it is just ending
		}
	}
	complain(f.own.folder.Close(), "close a control group")
	complain(err, "remove a control group")
}

// scatter moves the processes back into the root group, those that they fork meanwhile among them.
func (f *Freezer) scatter() {
	left := map[int]bool{} // what cannot be moved
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		pids, err := f.own.processes()
		complain(err, "list thawed processes")
		isNew := false
		for _, pid := range pids {
			if left[pid] {
				continue
			}
			isNew = true
			if err := f.root.write("cgroup.procs", strconv.Itoa(pid)); err != nil && err != syscall.ESRCH {
				left[pid] = true
				complain(err, "move process %d back", pid)
			}
		}
		if !isNew {
			return
		}
	}
}
