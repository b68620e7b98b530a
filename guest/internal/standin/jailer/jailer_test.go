package jailer

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asJailer is this test program's first word when it shall be the stand-in.
const asJailer = "stand-in-jailer"

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

func init() { runtime.LockOSThread() } // as in the program

// TestMain makes this test program a jailer, or what is in the jail.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == asJailer {
		os.Exit(Run(os.Args[2:], os.Stdout, os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == "--id" {
		os.Exit(beJailed())
	}
	os.Exit(m.Run())
}

// jailed is what the program in the jail sees of itself.
type jailed struct {
	Args, Env, Root []string
	Pid, UID, GID   int
	Groups          []int
	Folder          string
	OpenFiles       uint64
	Descriptors     int // beyond stderr
}

// beJailed tells on stdout, or in a file where that leads nowhere, and with a word more stays.
func beJailed() int {
	j := jailed{Args: os.Args, Env: os.Environ(), Pid: os.Getpid(), UID: os.Getuid(), GID: os.Getgid()}
	j.Groups, _ = os.Getgroups() // none if it fails
	j.Folder, _ = os.Getwd()     // likewise
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		j.OpenFiles = limit.Max
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, entry := range entries {
		j.Root = append(j.Root, entry.Name())
	}
	for fd := 20; fd < 30; fd++ { // the runtime's own are below
		var stat syscall.Stat_t
		if syscall.Fstat(fd, &stat) == nil {
			j.Descriptors++
		}
	}
	text, err := json.Marshal(j)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(string(text))
	if err := os.WriteFile("/told", text, 0o600); err != nil {
		fmt.Println(err)
		return 1
	}
	if os.Args[len(os.Args)-1] == "stay" {
		time.Sleep(time.Minute)
	}
	return 0
}

// needRoot skips where no jail can be made.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a jail needs root")
	}
	program, err := elf.Open("/proc/self/exe")
	must(t, err)
	defer program.Close()
	for _, part := range program.Progs {
		if part.Type == elf.PT_INTERP {
			t.Skip("this test program needs libraries, which are not in a jail (-race)")
		}
	}
	// Some containers have root without the right to mount or to make devices.
	node := filepath.Join(t.TempDir(), "node")
	if err := syscall.Mknod(node, syscall.S_IFCHR, 1<<8|3); err != nil {
		t.Skipf("a jail needs the right to make devices: %v", err)
	}
	command := exec.Command("/bin/true")
	command.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := command.Run(); err != nil {
		t.Skipf("a jail needs the right to mount: %v", err)
	}
}

// base is a folder for jails, and the arguments that lead to one. The user of a jail must be able to reach it.
func base(t *testing.T, id string, more ...string) (root string, words []string) {
	t.Helper()
	folder := t.TempDir()
	program := filepath.Join(t.TempDir(), "program")
	text, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(program, text, 0o755))
	words = append([]string{"--id", id, "--exec-file", program, "--uid", "12345", "--gid", "12346", "--chroot-base-dir", folder}, more...)
	return filepath.Join(folder, "program", id, "root"), words
}

func run(t *testing.T, words ...string) (output, failures string, status int) {
	t.Helper()
	command := exec.Command("/proc/self/exe", append([]string{asJailer}, words...)...)
	command.Env = []string{"SECRET=1"}
	for i := 0; i < 20; i++ { // a careless starter's
		command.ExtraFiles = append(command.ExtraFiles, os.Stderr)
	}
	var out, err bytes.Buffer
	command.Stdout, command.Stderr = &out, &err
	failure := command.Run()
	var exit *exec.ExitError
	if failure != nil && !errors.As(failure, &exit) {
		t.Fatal(failure)
	}
	return out.String(), err.String(), command.ProcessState.ExitCode()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func told(t *testing.T, text string) (j jailed) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	return j
}

func TestTheProgramIsAloneInItsJail(t *testing.T) {
	needRoot(t)
	root, words := base(t, "sbx-1", "--resource-limit", "no-file=512", "--", "--api-sock", "/run/api.sock")
	output, failures, status := run(t, words...)
	if status != 0 || failures != "" {
		t.Fatalf("status %d: %s", status, failures)
	}
	j := told(t, output)
	if j.UID != 12345 || j.GID != 12346 || len(j.Groups) != 0 || len(j.Env) != 0 || j.Folder != "/" || j.OpenFiles != 512 || j.Descriptors != 0 {
		t.Errorf("it is %+v", j)
	}
	if got := strings.Join(j.Root, " "); got != "dev program program.pid run" {
		t.Errorf("the jail has %s", got)
	}
	names := []string{j.Args[0], j.Args[1], j.Args[2], j.Args[3], j.Args[5], j.Args[7], j.Args[9], j.Args[10]}
	if got := strings.Join(names, " "); got != "/program --id sbx-1 --start-time-us --start-time-cpu-us --parent-cpu-time-us --api-sock /run/api.sock" {
		t.Errorf("it was called %v", j.Args)
	}
	pid, err := os.ReadFile(filepath.Join(root, "program.pid"))
	if must(t, err); string(pid) != strconv.Itoa(j.Pid) {
		t.Errorf("the pid file has %s, it is %d", pid, j.Pid)
	}
	for path, mode := range map[string]os.FileMode{
		"": os.ModeDir | 0o700, "dev": os.ModeDir | 0o700, "dev/net": os.ModeDir | 0o700, "run": os.ModeDir | 0o700,
		"dev/kvm": os.ModeDevice | os.ModeCharDevice | 0o600, "dev/net/tun": os.ModeDevice | os.ModeCharDevice | 0o600, "program": 0o755,
	} {
		info, err := os.Stat(filepath.Join(root, path))
		must(t, err)
		if owner := info.Sys().(*syscall.Stat_t); info.Mode() != mode || owner.Uid != 12345 || owner.Gid != 12346 {
			t.Errorf("%s is %v of %d:%d", path, info.Mode(), owner.Uid, owner.Gid)
		}
	}
	if kvm, err := os.Stat(filepath.Join(root, "dev/kvm")); err != nil || kvm.Sys().(*syscall.Stat_t).Rdev != 10<<8|232 {
		t.Errorf("dev/kvm: %v", err)
	}
}

func TestAJailIsUsedOnce(t *testing.T) {
	needRoot(t)
	_, words := base(t, "sbx-1")
	if _, failures, status := run(t, words...); status != 0 {
		t.Fatal(failures)
	}
	_, failures, status := run(t, words...)
	if want := "Failed to create /dev/net/tun via mknod inside the jail: File exists (os error 17)"; status != 1 || !strings.HasPrefix(failures, want) {
		t.Errorf("status %d: %s", status, failures)
	}
}

func TestAFolderThatIsThereIsTakenButNotALinkInIt(t *testing.T) {
	needRoot(t)
	root, words := base(t, "sbx-1")
	must(t, os.MkdirAll(root, 0o755))
	must(t, os.WriteFile(filepath.Join(root, "disk"), nil, 0o644))
	if output, failures, status := run(t, words...); status != 0 || !strings.Contains(output, `"disk"`) {
		t.Errorf("status %d: %s%s", status, output, failures)
	}
	root, words = base(t, "sbx-2")
	must(t, os.MkdirAll(root, 0o755))
	must(t, os.WriteFile(filepath.Join(root, "other"), nil, 0o644))
	must(t, os.Link(filepath.Join(root, "other"), filepath.Join(root, "program")))
	if _, failures, status := run(t, words...); status != 1 || !strings.HasPrefix(failures, "Detected hard link at: ") {
		t.Errorf("a hard link: status %d: %s", status, failures)
	}
	must(t, os.Remove(filepath.Join(root, "program")))
	must(t, os.Symlink("other", filepath.Join(root, "program")))
	if _, failures, status := run(t, words...); status != 1 || !strings.Contains(failures, "Too many levels of symbolic links (os error 40)") {
		t.Errorf("a symbolic link: status %d: %s", status, failures)
	}
}

// awaitTold waits for a program that this test is not connected with.
func awaitTold(t *testing.T, root string) jailed {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(root, "told"))
		if err == nil && len(text) > 0 {
			return told(t, string(text))
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is told from the jail")
		}
	}
}

func TestInAPidNamespaceTheProgramIsProcessOneAndTheJailerLeaves(t *testing.T) {
	needRoot(t)
	for _, way := range [][]string{{"--new-pid-ns", "--daemonize"}, {"--daemonize"}} {
		root, words := base(t, "sbx-1", append(way, "--", "stay")...)
		output, failures, status := run(t, words...)
		if status != 0 || failures != "" || output != "" {
			t.Fatalf("%v: status %d: %s%s", way, status, output, failures)
		}
		text, err := os.ReadFile(filepath.Join(root, "program.pid"))
		must(t, err)
		pid, err := strconv.Atoi(string(text))
		must(t, err)
		j := awaitTold(t, root)
		if want := map[bool]int{true: 1, false: pid}[way[0] == "--new-pid-ns"]; j.Pid != want {
			t.Errorf("%v: it is process %d, want %d", way, j.Pid, want)
		}
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", pid)); err != nil || target != "/dev/null" && !strings.HasSuffix(target, "/null") {
			t.Errorf("%v: its stdout is %s, %v", way, target, err)
		}
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
}

func TestWrongArgumentsAreRefused(t *testing.T) {
	program, err := os.Executable()
	must(t, err)
	folder := t.TempDir()
	right := map[string]string{"--id": "sbx-1", "--exec-file": program, "--uid": "1", "--gid": "1", "--chroot-base-dir": folder}
	for _, c := range []struct{ name, value, want string }{
		{"--id", "sbx_1", "Invalid instance ID: Invalid char (_) at position 3"},
		{"--id", "", "Failed to parse arguments: Argument 'id' required, but not found."},
		{"--exec-file", "/nope", "Failed to canonicalize path /nope: No such file or directory (os error 2)"},
		{"--exec-file", folder, folder + " is not a file"},
		{"--chroot-base-dir", "/nope", "Failed to canonicalize path /nope: No such file or directory (os error 2)"},
		{"--chroot-base-dir", program, program + " is not a directory"},
		{"--uid", "-1x", "Invalid uid: -1x"},
		{"--gid", "4294967296", "Invalid gid: 4294967296"},
		{"--parent-cgroup", "../x", "Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'"},
		{"--parent-cgroup", "/x", "Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'"},
		{"--cgroup-version", "x", "x is an invalid cgroup version specifier"},
		{"--resource-limit", "no-file", "Invalid format for resources limits: no-file"},
		{"--resource-limit", "no-file=x", "Invalid limit value for resource: x: invalid digit found in string"},
		{"--resource-limit", "memory=1", "Invalid resource argument: memory"},
		{"--nope", "", "Failed to parse arguments: Found argument 'nope' which wasn't expected"},
	} {
		words := []string{}
		for name, value := range right {
			if name != c.name {
				words = append(words, name, value)
			}
		}
		if c.value != "" {
			words = append(words, c.name, c.value)
		} else if _, isKnown := right[c.name]; !isKnown {
			words = append(words, c.name)
		}
		_, failures, status := run(t, words...)
		if status != 1 || !strings.HasPrefix(failures, c.want) {
			t.Errorf("%s %s: status %d: %s\nwant %s", c.name, c.value, status, failures, c.want)
		}
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) > 0 {
		t.Errorf("the folder for jails has %v, %v", entries, err)
	}
}

func TestANetworkNamespaceThatIsNotThereIsRefused(t *testing.T) {
	needRoot(t)
	_, words := base(t, "sbx-1", "--netns", "/nope")
	if _, failures, status := run(t, words...); status != 1 || !strings.HasPrefix(failures, "Failed to open file /nope: No such file") {
		t.Errorf("status %d: %s", status, failures)
	}
	_, words = base(t, "sbx-1", "--netns", "/dev/null")
	if _, failures, status := run(t, words...); status != 1 || !strings.HasPrefix(failures, "Failed to join network namespace: netns: ") {
		t.Errorf("status %d: %s", status, failures)
	}
	_, words = base(t, "sbx-1", "--netns", "/proc/self/ns/net")
	if _, failures, status := run(t, words...); status != 0 {
		t.Errorf("status %d: %s", status, failures)
	}
}

func TestACrashLeavesWhatItsStepFound(t *testing.T) {
	needRoot(t)
	for step, want := range map[string]string{"folder": "", "copy": ".", "chroot": ". program", "exec": ". dev program run"} {
		root, words := base(t, "sbx-1")
		_, failures, status := run(t, append([]string{"--stand-in-fault", "crash-at=" + step}, words...)...)
		if status != -1 {
			t.Errorf("%s: status %d: %s", step, status, failures)
		}
		found := []string{}
		if entries, err := os.ReadDir(root); err == nil {
			found = append(found, ".")
			for _, entry := range entries {
				found = append(found, entry.Name())
			}
		}
		if got := strings.Join(found, " "); got != want {
			t.Errorf("%s: the jail has %q, want %q", step, got, want)
		}
	}
}

func TestCgroupFilesAreChecked(t *testing.T) {
	if _, err := hierarchies(1); err != nil {
		t.Skipf("no hierarchy of version 1: %v", err)
	}
	for setting, want := range map[string]string{
		"cpu.shares":        "Invalid format for cgroups: cpu.shares",
		"cpu.shares=":       "Invalid format for cgroups: cpu.shares=",
		"cpu.shares=1=2":    "Invalid format for cgroups: cpu.shares=1=2",
		"cpu=1":             "Cgroup invalid file: cpu=1",
		"../cpu.shares=1":   "Cgroup invalid file: ../cpu.shares=1",
		"nonsense.shares=1": "Controller nonsense is unavailable",
	} {
		if _, err := newCgroups(1, "program/sbx-1", 1, []string{setting}); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", setting, err, want)
		}
	}
}
