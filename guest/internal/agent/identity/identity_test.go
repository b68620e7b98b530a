package identity

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func machineWith(t *testing.T, files map[string]string) *Machine {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return &Machine{Root: root}
}

func (m *Machine) expect(t *testing.T, name, content string) {
	t.Helper()
	found, err := os.ReadFile(m.path(name))
	if err != nil || string(found) != content {
		t.Fatalf("%s holds %q (%v), not %q", name, found, err, content)
	}
}

func TestAHostsFileIsRenamedWhereItMeansTheMachine(t *testing.T) {
	for _, c := range []struct{ hosts, want string }{
		{"", "127.0.1.1\tnew\n"},
		{"127.0.0.1\tlocalhost\n127.0.1.1\told\n", "127.0.0.1\tlocalhost\n127.0.1.1\tnew\n"},
		{"127.0.1.1 old.example old # me\n10.0.0.1 old\n", "127.0.1.1\told.example new\n10.0.0.1 old\n"},
		{"127.0.1.1 older\n", "127.0.1.1 older\n127.0.1.1\tnew\n"},
		{"10.0.0.9 new\n", "10.0.0.9 new\n"},
		{"# 127.0.1.1 old", "# 127.0.1.1 old\n127.0.1.1\tnew\n"},
	} {
		if found := renameIn(c.hosts, "old", "new"); found != c.want {
			t.Errorf("%q became %q, not %q", c.hosts, found, c.want)
		}
	}
}

func TestAMachineIsRenamedInItsFiles(t *testing.T) {
	m := machineWith(t, map[string]string{"etc/hostname": "old\n", "etc/hosts": "127.0.1.1\told\n"})
	for i := 0; i < 2; i++ { // the second time nothing is left to do
		if err := m.SetHostName("new"); err != nil {
			t.Fatal(err)
		}
		m.expect(t, "/etc/hostname", "new\n")
		m.expect(t, "/etc/hosts", "127.0.1.1\tnew\n")
	}
}

func TestANameTakesThePlaceOfALongerOneAndOfAShorterOne(t *testing.T) {
	m := machineWith(t, map[string]string{"etc/hostname": "much-longer\n", "etc/hosts": "127.0.1.1\tmuch-longer\n"})
	for _, name := range []string{"short", "longer-again", "of-its-size"} {
		if err := m.SetHostName(name); err != nil {
			t.Fatal(err)
		}
		m.expect(t, "/etc/hostname", name+"\n")
		m.expect(t, "/etc/hosts", "127.0.1.1\t"+name+"\n")
	}
}

func TestAMachineIDIsWrittenAndKeepsItsMode(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	m := machineWith(t, map[string]string{"etc/machine-id": "", "var/lib/dbus/machine-id": "other\n"})
	if err := m.SetMachineID(id); err != nil {
		t.Fatal(err)
	}
	m.expect(t, "/etc/machine-id", id+"\n")
	m.expect(t, "/var/lib/dbus/machine-id", id+"\n")
	if info, err := os.Stat(m.path("/etc/machine-id")); err != nil || info.Mode() != 0o640 {
		t.Fatal(info.Mode(), err)
	}
	bare := machineWith(t, nil)
	if err := bare.SetMachineID(id); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(bare.path("/etc/machine-id")); err != nil || info.Mode() != machineIDMode {
		t.Fatal(info.Mode(), err)
	}
	if _, err := os.Lstat(bare.path("/var/lib/dbus/machine-id")); !os.IsNotExist(err) {
		t.Fatal("a file of D-Bus was made for nobody")
	}
}

func TestALinkToTheOtherMachineIDStaysOne(t *testing.T) {
	m := machineWith(t, map[string]string{"etc/machine-id": "old\n", "var/lib/dbus/x": ""})
	link := m.path("/var/lib/dbus/machine-id")
	if err := os.Symlink("/etc/machine-id", link); err != nil {
		t.Fatal(err)
	}
	if err := m.SetMachineID("0123456789abcdef0123456789abcdef"); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(link); err != nil || target != "/etc/machine-id" {
		t.Fatal(target, err)
	}
}

func TestAPipeInThePlaceOfAFileHoldsNobodyUp(t *testing.T) {
	m := machineWith(t, nil)
	for _, name := range []string{"/etc/hostname", "/etc/hosts", "/etc/machine-id"} {
		if err := syscall.Mkfifo(m.path(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.SetHostName("new"); err != nil {
		t.Fatal(err)
	}
	if err := m.SetMachineID("0123456789abcdef0123456789abcdef"); err != nil {
		t.Fatal(err)
	}
	m.expect(t, "/etc/hostname", "new\n")
	m.expect(t, "/etc/hosts", "127.0.1.1\tnew\n")
}
