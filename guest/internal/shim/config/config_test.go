package config

import (
	"encoding/json"
	"strings"
	"testing"
)

// full is the configuration of SHIM.md.
const full = `{ "version": 1, "sandbox": "sbx_7f2",
  "vmm": { "argv": ["/usr/bin/qemu-system-x86_64", "-S"], "env": {"K": "V"}, "uid": 200003, "gid": 200003, "groups": [104], "maxFiles": 2048,
           "maxProcesses": 300 },
  "files": [ { "listen": "qmp.sock" }, { "open": "/dev/vhost-vsock" }, { "listen": "events.sock" }, { "listen": "agent.sock" } ],
  "console": { "log": "console.log", "maxBytes": 1048576 },
  "vsock": { "kind": "daemon", "argv": ["vhost-device-vsock"], "waitFor": "vsock/vhost.sock",
             "socket": "vsock.sock", "daemonSocket": "vsock/daemon.sock" },
  "serial": { "kind": "port", "socket": "serial.sock", "line": "agent.sock" },
  "monitor": { "kind": "qmp", "socket": "events.sock" },
  "cgroup": { "folder": "/sys/fs/cgroup/bandsox/sbx_7f2", "settings": {"cpu.max": "50000 100000"} },
  "remove": ["qmp.sock", "vsock/vsock.sock"] }`

func TestConfigurationOfTheContractIsAccepted(t *testing.T) {
	config, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	if *config.VMM.UID != 200003 || config.VMM.MaxFiles != 2048 || config.Files[1].Open != "/dev/vhost-vsock" || config.Vsock.WaitFor != "vsock/vhost.sock" ||
		config.VMM.MaxProcesses != 300 || config.Monitor.Socket != "events.sock" || config.Serial.Line != "agent.sock" || config.Cgroup.Settings["cpu.max"] != "50000 100000" {
		t.Errorf("it reads as %+v", config)
	}
}

func TestOnlyTheNecessaryIsAccepted(t *testing.T) {
	config, err := Parse([]byte(`{"version":1,"sandbox":"s","vmm":{"argv":["x"]},"console":{"log":"c","maxBytes":4096}}`))
	if err != nil {
		t.Fatal(err)
	}
	if config.VMM.MaxFiles != 1024 || config.VMM.MaxProcesses != 0 || config.VMM.UID != nil || config.Vsock != nil || config.Monitor != nil || config.Serial != nil || config.Cgroup != nil {
		t.Errorf("it reads as %+v", config)
	}
}

func TestConfigurationOfALoadedMachineIsAccepted(t *testing.T) {
	config, err := Parse([]byte(`{"version":1,"sandbox":"s","vmm":{"argv":["x"],"readOnly":"loaded/memory"},"console":{"log":"c","maxBytes":4096},
		"files":[{"read":"loaded/devices"}],"removeFolders":["loaded"]}`))
	if err != nil {
		t.Fatal(err)
	}
	if config.VMM.ReadOnly != "loaded/memory" || config.Files[0].Read != "loaded/devices" {
		t.Errorf("it reads as %+v", config)
	}
}

func TestConfigurationOfAFirecrackerIsAccepted(t *testing.T) {
	config, err := Parse([]byte(`{"version":1,"sandbox":"s","vmm":{"argv":["x"],"folder":"vmm","newPidNamespace":true},"console":{"log":"c","maxBytes":4096},
		"vsock":{"kind":"vmm","socket":"vsock.sock","vmmSocket":"vmm/v.sock"},"monitor":{"kind":"firecracker","socket":"vmm/api.sock"},
		"outputs":[{"fifo":"vmm/log","log":"firecracker.log","uid":7},{"fifo":"vmm/metrics","log":"metrics.log"}],"removeFolders":["jail"]}`))
	if err != nil {
		t.Fatal(err)
	}
	if !config.VMM.NewPidNamespace || config.VMM.Folder != "vmm" || config.Vsock.VMMSocket != "vmm/v.sock" || config.Monitor.Socket != "vmm/api.sock" ||
		*config.Outputs[0].UID != 7 || config.Outputs[1].UID != nil || config.RemoveFolders[0] != "jail" {
		t.Errorf("it reads as %+v", config)
	}
}

// TestMistakesAreRefused changes one thing at a time; in the key, dots lead inwards. The refusal must name the right thing: "it is
// refused" is true of a mistake in the test as well.
func TestMistakesAreRefused(t *testing.T) {
	for _, mistake := range []struct{ key, value, says string }{
		{"unknown", `1`, "unknown"},
		{"vmm.unknown", `1`, "unknown"},
		{"version", `2`, "version is 2"},
		{"sandbox", `"../x"`, "sandbox"},
		{"sandbox", `""`, "sandbox"},
		{"vmm.argv", `[]`, "vmm: argv"},
		{"vmm.argv", `[""]`, "vmm: argv"},
		{"vmm.argv", `["x","a\u0000b"]`, "argv[1]"},
		{"vmm.env", `{"A=B":"c"}`, "env"},
		{"vmm.env", `{"":"c"}`, "env"},
		{"vmm.env", `{"A":"\u0000"}`, "env"},
		{"vmm.uid", `null`, "uid and gid"},
		{"vmm.uid", `-1`, "uid"},
		{"vmm.uid", `4294967295`, "above"},
		{"vmm.folder", `"/"`, "vmm: folder"},
		{"vmm.folder", `"a/../.."`, "vmm: folder"},
		{"vmm.readOnly", `"/etc/passwd"`, "vmm: readOnly"},
		{"vmm.readOnly", `"../memory"`, "vmm: readOnly"},
		{"vmm", `{"argv":["x"],"readOnly":"memory","folder":"vmm"}`, "runs in the directory itself"},
		{"vmm", `{"argv":["x"],"readOnly":"memory","maxFiles":255}`, "maxFiles above 255"},
		{"vmm.maxFiles", `3`, "maxFiles"},
		{"vmm.maxFiles", `100000000`, "maxFiles"},
		{"vmm.maxProcesses", `1`, "maxProcesses"},
		{"vmm.maxProcesses", `100000000`, "maxProcesses"},
		{"monitor.kind", `"other"`, "monitor: kind"},
		{"monitor.socket", `""`, "monitor: socket"},
		{"monitor.socket", `"shim.sock"`, "monitor: socket"},
		{"monitor.unknown", `1`, "unknown"},
		{"cgroup.folder", `"sbx_7f2"`, "cgroup: folder"},
		{"cgroup.folder", `"/sys/fs/cgroup/bandsox"`, "cgroup: folder"},
		{"cgroup.folder", `"/sys/fs/cgroup/x/../sbx_7f2"`, "cgroup: folder"},
		{"cgroup.settings", `{"cgroup.procs":"1"}`, "cgroup.procs"},
		{"cgroup.settings", `{"../cpu.max":"1"}`, "cpu.max"},
		{"cgroup.settings", `{"cpu.max":""}`, "cpu.max"},
		{"files", `[{}]`, "files[0]: exactly one"},
		{"files", `[{"listen":"a","open":"b"}]`, "files[0]: exactly one"},
		{"files", `[{"open":"a","read":"b"}]`, "files[0]: exactly one"},
		{"files", `[{"read":"/etc/passwd"}]`, "not a plain path"},
		{"files", `[{"read":"shim.json"}]`, "belongs to the shim"},
		{"files", `[{"listen":"/abs.sock"}]`, "not a plain path"},
		{"files", `[{"listen":"` + strings.Repeat("x", 108) + `"}]`, "longer than 107"},
		{"files", `[{"listen":"shim.sock"}]`, "belongs to the shim"},
		{"console.log", `"../console.log"`, "not a plain path"},
		{"console.log", `"a/../../b"`, "not a plain path"},
		{"console.log", `"./a"`, "not a plain path"},
		{"console.log", `"."`, "cannot be a path"},
		{"console.log", `"vmm.log"`, "belongs to the shim"},
		{"console.maxBytes", `0`, "maxBytes"},
		{"vsock.kind", `"other"`, "kind"},
		{"vsock.kind", `"kernel"`, "belong to kind daemon"},
		{"vsock.cid", `3`, "cid and vmmSocket do not belong to kind daemon"},
		{"vsock.waitFor", `""`, "cannot be a path"},
		{"vsock.waitFor", `".."`, "not a plain path"},
		{"vsock", `{"kind":"kernel","cid":2,"socket":"v"}`, "cid is 2"},
		{"vsock", `{"kind":"kernel","cid":3,"socket":"/v"}`, "not a plain path"},
		{"serial.kind", `"other"`, "serial: kind"},
		{"serial.kind", `"uart"`, "serial: line belongs to kind port"},
		{"serial.awake", `true`, "serial: awake belongs to kind uart"},
		{"serial.line", `"other.sock"`, "serial: line"},
		{"serial.line", `""`, "serial: line"},
		{"serial.socket", `"shim.sock"`, "serial: socket"},
		{"serial.unknown", `1`, "unknown"},
		{"vsock", `{"kind":"vmm","socket":"v"}`, "vmmSocket"},
		{"vsock", `{"kind":"vmm","socket":"v","vmmSocket":"../v"}`, "not a plain path"},
		{"vsock", `{"kind":"vmm","socket":"v","vmmSocket":"w","cid":3}`, "cid to kind kernel"},
		{"vsock", `{"kind":"kernel","socket":"v","vmmSocket":"w","cid":3}`, "vmmSocket to kind vmm"},
		{"monitor", `{"kind":"firecracker","socket":"/api.sock"}`, "not a plain path"},
		{"outputs", `[{"fifo":"a"}]`, "outputs[0]: log"},
		{"outputs", `[{"fifo":"shim.sock","log":"b"}]`, "belongs to the shim"},
		{"outputs", `[{"fifo":"a","log":"vmm.log"}]`, "belongs to the shim"},
		{"outputs", `[{"fifo":"a","log":"b","uid":4294967295}]`, "uid is above"},
		{"removeFolders", `["."]`, "removeFolders[0]"},
		{"removeFolders", `["../x"]`, "not a plain path"},
		{"remove", `["/etc/passwd"]`, "remove[0]"},
		{"remove", `["run.json"]`, "belongs to the shim"},
		{"remove", `["console.log"]`, "the console's log"},
	} {
		t.Run(mistake.key+" "+mistake.value, func(t *testing.T) {
			_, err := Parse(changed(t, mistake.key, mistake.value))
			if err == nil || !strings.Contains(err.Error(), mistake.says) {
				t.Errorf("got %v, want something with %q", err, mistake.says)
			}
		})
	}
	for _, text := range []string{"", "{", full + "{}", full + "x"} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%.20q is accepted", text)
		}
	}
}

// changed is full with one value replaced.
func changed(t *testing.T, key, value string) []byte {
	t.Helper()
	var whole map[string]any
	if err := json.Unmarshal([]byte(full), &whole); err != nil {
		t.Fatal(err)
	}
	object := whole
	for {
		outer, inner, nested := strings.Cut(key, ".")
		if !nested {
			break
		}
		object, key = object[outer].(map[string]any), inner
	}
	object[key] = json.RawMessage(value)
	text, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
