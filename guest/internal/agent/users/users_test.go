package users

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// withDatabases puts other files in the place of /etc/passwd and /etc/group.
func withDatabases(t *testing.T, passwd, group string) {
	oldPasswd, oldGroup := passwdPath, groupPath
	t.Cleanup(func() { passwdPath, groupPath = oldPasswd, oldGroup })
	folder := t.TempDir()
	passwdPath, groupPath = filepath.Join(folder, "passwd"), filepath.Join(folder, "group")
	for path, content := range map[string]string{passwdPath: passwd, groupPath: group} {
		if content == "" {
			continue // missing
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/home/app:/bin/sh\n1000:x:7:7::/seven:/bin/sh\nnohome:x:9:9:::\n"
	group  = "root:x:0:\nstaff:x:50:app,other\napp:x:1001:\nwheel:x:10:root,app\n"
)

func TestUsersAreFoundByNameAndNumber(t *testing.T) {
	withDatabases(t, passwd, group)
	for spec, want := range map[string]User{
		"":           {Name: "root", Home: "/root", Groups: []uint32{0, 10}},
		"root":       {Name: "root", Home: "/root", Groups: []uint32{0, 10}},
		"app":        {Name: "app", UID: 1000, GID: 1001, Home: "/home/app", Groups: []uint32{1001, 50, 10}},
		"app:staff":  {Name: "app", UID: 1000, GID: 50, Home: "/home/app"},
		"app:7":      {Name: "app", UID: 1000, GID: 7, Home: "/home/app"},
		"1000":       {Name: "1000", UID: 7, GID: 7, Home: "/seven", Groups: []uint32{7}}, // a name goes before a number
		"4321":       {Name: "4321", UID: 4321, Home: "/", Groups: []uint32{0}},
		"4321:wheel": {Name: "4321", UID: 4321, GID: 10, Home: "/"},
		"9":          {Name: "nohome", UID: 9, GID: 9, Home: "/", Groups: []uint32{9}},
	} {
		user, err := Lookup(spec)
		if err != nil || !reflect.DeepEqual(user, want) {
			t.Errorf("%q: %+v, %v", spec, user, err)
		}
	}
}

func TestUnknownNamesAreNamed(t *testing.T) {
	withDatabases(t, passwd, group)
	for _, spec := range []string{"nobody", ":staff", "app:", "app:nogroup", "-1", "4294967295", "broken"} {
		if _, err := Lookup(spec); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", spec, err)
		}
	}
}

func TestAnImageWithoutDatabasesHasRootAndNumbers(t *testing.T) {
	withDatabases(t, "", "")
	for spec, want := range map[string]User{
		"root": {Name: "root", Home: "/root", Groups: []uint32{0}},
		"0:0":  {Name: "root", Home: "/root"},
		"5":    {Name: "5", UID: 5, Home: "/", Groups: []uint32{0}},
	} {
		user, err := Lookup(spec)
		if err != nil || !reflect.DeepEqual(user, want) {
			t.Errorf("%q: %+v, %v", spec, user, err)
		}
	}
}
