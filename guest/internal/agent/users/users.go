// Package users looks names up in the guest's own /etc/passwd and /etc/group. os/user would cache, and without cgo it knows no
// supplementary groups by number.
package users

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The databases. Tests have others.
var (
	passwdPath = "/etc/passwd"
	groupPath  = "/etc/group"
)

// User is an identity to run a command as, or to own a file.
type User struct {
	Name   string // the number where /etc/passwd has no name for it
	UID    uint32
	GID    uint32
	Home   string
	Groups []uint32 // supplementary
}

// ErrUnknown says that a name is in neither database.
var ErrUnknown = errors.New("no such user or group")

// Lookup understands "name", "uid", "name:group" and "uid:gid", "" being root. A group that is named replaces the user's own
// and the supplementary ones, as in a container's `--user`. Numbers need no entry.
func Lookup(spec string) (User, error) {
	if spec == "" {
		spec = "0"
	}
	userPart, groupPart := spec, ""
	colon := strings.IndexByte(spec, ':')
	if colon >= 0 {
		userPart, groupPart = spec[:colon], spec[colon+1:]
	}
	user, err := lookupUser(userPart)
	if err != nil {
		return User{}, err
	}
	if colon >= 0 {
		user.GID, err = lookupGroup(groupPart)
		return user, err
	}
	user.Groups, err = groupsOf(user)
	return user, err
}

func lookupUser(name string) (User, error) {
	number, numeric := parseID(name)
	user := User{Name: name, UID: number, Home: "/"}
	if numeric && number == 0 {
		user.Name, user.Home = "root", "/root" // an image without /etc/passwd has a root too
	}
	found := false
	err := eachLine(passwdPath, func(fields []string) bool {
		if len(fields) < 7 {
			return true
		}
		uid, uidOK := parseID(fields[2])
		gid, gidOK := parseID(fields[3])
		// A name goes before a number: a user may be called "1000".
		if !uidOK || !gidOK || fields[0] != name && !(numeric && uid == number && !found) {
			return true
		}
		found = true
		user = User{Name: fields[0], UID: uid, GID: gid, Home: fields[5]}
		return fields[0] != name
	})
	if err != nil {
		return User{}, err
	}
	if !found && !numeric {
		if name == "root" {
			return User{Name: "root", Home: "/root"}, nil
		}
		return User{}, fmt.Errorf("%w: %q in %s", ErrUnknown, name, passwdPath)
	}
	if user.Home == "" {
		user.Home = "/"
	}
	return user, nil
}

func lookupGroup(name string) (uint32, error) {
	number, numeric := parseID(name)
	found := false
	err := eachLine(groupPath, func(fields []string) bool {
		if len(fields) < 3 || fields[0] != name {
			return true
		}
		gid, ok := parseID(fields[2])
		if ok {
			number, found = gid, true
		}
		return !ok
	})
	if err != nil {
		return 0, err
	}
	if !found && !numeric {
		return 0, fmt.Errorf("%w: %q in %s", ErrUnknown, name, groupPath)
	}
	return number, nil
}

// groupsOf gives the user's own group and those that name the user as a member, like initgroups(3).
func groupsOf(user User) ([]uint32, error) {
	groups := []uint32{user.GID}
	err := eachLine(groupPath, func(fields []string) bool {
		if len(fields) < 4 {
			return true
		}
		gid, ok := parseID(fields[2])
		if !ok || gid == user.GID {
			return true
		}
		for _, member := range strings.Split(fields[3], ",") {
			if member == user.Name {
				groups = append(groups, gid)
				break
			}
		}
		return len(groups) < 65536 // NGROUPS_MAX
	})
	return groups, err
}

func parseID(text string) (uint32, bool) {
	// 2^32-1 means "leave as it is" to chown and setuid.
	value, err := strconv.ParseUint(text, 10, 32)
	return uint32(value), err == nil && value != 1<<32-1
}

// eachLine calls visit with the fields of each line until it says false. A database that is not there has no lines.
func eachLine(path string, visit func(fields []string) bool) error {
	lines, err := readDatabase(path)
	if err != nil {
		return err
	}
	for _, fields := range lines {
		if !visit(fields) {
			return nil
		}
	}
	return nil
}
