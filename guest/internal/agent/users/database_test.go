package users

import (
	"os"
	"testing"
	"time"
)

func TestAChangedDatabaseIsReadAgain(t *testing.T) {
	withDatabases(t, passwd, group)
	time.Sleep(settled + 100*time.Millisecond) // from then on it is kept
	for _, home := range []string{"/home/app", "/home/ape"} {
		content := []byte("app:x:1000:1001::" + home + ":/bin/sh\n")
		if err := os.WriteFile(passwdPath, content, 0o644); err != nil { // the same length in the same file
			t.Fatal(err)
		}
		for i := 0; i < 2; i++ {
			if user, err := Lookup("app"); err != nil || user.Home != home {
				t.Fatalf("%+v, %v instead of the home %s", user, err, home)
			}
		}
	}
	if err := os.Remove(passwdPath); err != nil {
		t.Fatal(err)
	}
	if _, err := Lookup("app"); err == nil {
		t.Fatal("found in a database that is gone")
	}
}

func TestAnUnchangedDatabaseIsKept(t *testing.T) {
	withDatabases(t, passwd, group)
	time.Sleep(settled + 100*time.Millisecond)
	first, err := readDatabase(passwdPath)
	if err != nil {
		t.Fatal(err)
	}
	again, err := readDatabase(passwdPath)
	if err != nil || &first[0] != &again[0] {
		t.Fatalf("it was read again, %v", err)
	}
}
