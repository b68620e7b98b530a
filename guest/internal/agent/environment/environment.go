// Package environment holds the variables that every program of the guest begins with: PROTOCOL.md section 3, and over them the
// machine's identity of section 9.
package environment

import (
	"os"
	"sync"

	"bandsox.dev/guest/internal/agent/users"
)

// DefaultPath is where commands are looked for.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Identity is what the machine is told about itself. Its zero value is empty and ready.
type Identity struct {
	mutex  sync.RWMutex
	values map[string]string // never changed, but replaced
}

// Machine is this machine's.
var Machine Identity

// Set replaces all of it.
func (i *Identity) Set(values map[string]string) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	i.values = values
}

func (i *Identity) get() map[string]string {
	i.mutex.RLock()
	defer i.mutex.RUnlock()
	return i.values
}

// Of gives a user's variables by name.
func Of(user users.User) map[string]string {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "localhost" // only uname(2) without /proc could fail so; a command runs without its name as well
	}
	values := map[string]string{
		"PATH": DefaultPath, "HOME": user.Home, "USER": user.Name, "LANG": "C.UTF-8", "HOSTNAME": hostname,
	}
	for name, value := range Machine.get() {
		values[name] = value
	}
	return values
}

// List writes variables as execve(2) wants them.
func List(values map[string]string) []string {
	list := make([]string, 0, len(values))
	for name, value := range values {
		list = append(list, name+"="+value)
	}
	return list
}
