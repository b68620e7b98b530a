package firecracker_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"bandsox.dev/guest/internal/shim/procid"
	"bandsox.dev/guest/internal/shim/record"
)

// command has a program run in the guest, and gives its output.
func (a *agent) command(words ...string) string {
	a.t.Helper()
	a.send(object{"type": "exec", "argv": words})
	a.expect("started")
	output := ""
	for {
		frame, err := a.decoder.Next()
		must(a.t, err)
		if frame.Message.Type == "exit" {
			return output
		}
		output += string(frame.Payload)
	}
}

func TestAMachineBootsByRequests(t *testing.T) {
	v := booted(t)
	a := greet(t, v.dial())
	if a.hello.Text("bootId") == "" {
		t.Errorf("the hello is %v", a.hello)
	}
	if output := a.command("sh", "-c", "echo $((6 * 7))"); output != "42\n" {
		t.Errorf("the guest says %q", output)
	}
	v.awaitConsole("bandsox-agent: 0.1.0 ready on the serial line ttyS0")
}

// configFile writes the configuration of a whole machine.
func (v *vmm) configFile(change func(object)) {
	v.t.Helper()
	config := object{
		"boot-source":    v.bootSource(bootArguments),
		"drives":         []object{{"drive_id": "root", "path_on_host": v.path("disk"), "is_root_device": true, "is_read_only": true}},
		"machine-config": object{"vcpu_count": 1, "mem_size_mib": 16},
		"vsock":          object{"guest_cid": 3, "uds_path": "v.sock"},
	}
	change(config)
	text, err := json.Marshal(config)
	must(v.t, err)
	v.write("config.json", string(text))
}

func TestAMachineBootsByAConfigurationFile(t *testing.T) {
	v := prepare(t)
	v.configFile(func(object) {})
	v.run("--no-api", "--config-file", "config.json")
	v.awaitConsole("ready on vsock port 9000")
	greet(t, v.dial())
	if _, err := os.Stat(v.path("api.sock")); err == nil {
		t.Error("there is an API socket")
	}
	a := greet(t, v.dial())
	a.send(object{"type": "shutdown", "mode": "reboot", "graceMs": 100})
	a.expect("stopping")
	v.wantEnd(0)
}

func TestAMachineOfAConfigurationFileHasAnAPI(t *testing.T) {
	v := prepare(t)
	v.configFile(func(object) {})
	v.run("--config-file", "config.json", "--api-sock", "api.sock")
	v.connect()
	v.wantState("Running")
	v.wantFault("PUT", "/actions", action("InstanceStart"), afterStart)
}

func TestAWrongConfigurationFileEndsTheProcess(t *testing.T) {
	for name, c := range map[string]struct {
		change func(object)
		words  string
	}{
		"no kernel":     {func(o object) { o["boot-source"] = object{"kernel_image_path": "/nope"} }, "Boot source error: The kernel file cannot be opened: No such file"},
		"no drives":     {func(o object) { delete(o, "drives") }, "Invalid JSON: missing field `drives`"},
		"unknown field": {func(o object) { o["vsock"] = object{"x": 1} }, "Invalid JSON: unknown field `x`"},
		"no folder":     {func(o object) { o["vsock"] = object{"guest_cid": 3, "uds_path": "a/b"} }, "Vsock device error: Cannot create backend"},
	} {
		t.Run(name, func(t *testing.T) {
			v := prepare(t)
			v.configFile(c.change)
			v.run("--no-api", "--config-file", "config.json").wantEnd(1)
			if !strings.Contains(v.read("out.log"), c.words) {
				t.Errorf("it says %s\nwant %s", v.read("out.log"), c.words)
			}
		})
	}
}

func TestShutdownByTheAgentEndsTheVMMAndLeavesItsSockets(t *testing.T) {
	v := booted(t)
	a := greet(t, v.dial())
	a.send(object{"type": "shutdown", "mode": "poweroff", "graceMs": 100})
	a.expect("stopping")
	v.wantEnd(0)
	for _, name := range []string{"v.sock", "api.sock"} {
		if _, err := os.Stat(v.path(name)); err != nil {
			t.Errorf("%s is gone", name)
		}
	}
	v.awaitConsole("bandsox-agent: stopping (poweroff), 100ms of grace")
}

func TestTheGuestsProcessesEndWithIt(t *testing.T) {
	v := booted(t)
	a := greet(t, v.dial())
	// The middle one ends: what it leaves is an orphan, which in a machine is process 1's.
	a.send(object{"type": "exec", "argv": []string{"sh", "-c", "(trap '' TERM; sleep 600 >/dev/null 2>&1 & echo $!)"}})
	a.expect("started")
	pid := ""
	for pid == "" {
		frame, err := a.decoder.Next()
		must(t, err)
		pid = strings.TrimSpace(string(frame.Payload))
	}
	b := greet(t, v.dial())
	b.send(object{"type": "shutdown", "mode": "reboot", "graceMs": 20})
	v.wantEnd(0)
	v.await("process "+pid+" is gone", func() bool {
		text, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(text), ") Z ")
	})
}

func TestTheGuestsProcessesStandStillWhileItIsPaused(t *testing.T) {
	v := booted(t)
	a := greet(t, v.dial())
	a.send(object{"type": "exec", "argv": []string{"sh", "-c", "while :; do echo x >> " + v.path("ticks") + "; sleep 0.005; done"}})
	ticks := func() int64 {
		info, err := os.Stat(v.path("ticks"))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	v.await("ticks", func() bool { return ticks() > 0 })
	v.wantDone("PATCH", "/vm", state("Paused"))
	time.Sleep(moment / 2) // a signal is on its way
	before := ticks()
	time.Sleep(moment)
	if after := ticks(); after != before {
		t.Errorf("%d ticks while paused", after-before)
	}
	v.wantDone("PATCH", "/vm", state("Resumed"))
	v.await("more ticks", func() bool { return ticks() > before })
}

func TestCtrlAltDelIsHeardUnlessThereIsNoKeyboard(t *testing.T) {
	v := booted(t)
	v.wantDone("PUT", "/actions", action("SendCtrlAltDel"))
	v.wantEnd(0)
	deaf := start(t)
	deaf.configure(bootArguments + " i8042.nokbd")
	deaf.wantDone("PUT", "/actions", action("InstanceStart"))
	deaf.awaitConsole("ready on vsock port 9000")
	deaf.wantDone("PUT", "/actions", action("SendCtrlAltDel"))
	time.Sleep(moment)
	deaf.wantState("Running")
}

func TestSignalsEndTheProcessAsTheRealOne(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGTERM: -15, syscall.SIGKILL: -9, syscall.SIGINT: -2, syscall.SIGHUP: 156} {
		v := booted(t)
		must(t, v.process.Process.Signal(sig))
		v.wantEnd(want)
	}
}

func TestTheConsoleIsStillWhileTheMachineIsPaused(t *testing.T) {
	v := start(t, "--stand-in-fault", "boot-takes=50", "--log-path", "log")
	v.configure(bootArguments)
	v.wantDone("PUT", "/actions", action("InstanceStart"))
	v.wantDone("PATCH", "/vm", state("Paused"))
	before := v.read("out.log")
	time.Sleep(moment)
	if after := v.read("out.log"); after != before {
		t.Errorf("it goes on: %q", after)
	}
	v.wantDone("PATCH", "/vm", state("Resumed"))
	v.awaitConsole("ready on vsock port 9000")
}

func TestAConsoleElsewhereIsNotOnTheUART(t *testing.T) {
	v := start(t, "--log-path", "log")
	v.configure("console=tty0 bandsox.port=9000")
	v.wantDone("PUT", "/actions", action("InstanceStart"))
	v.await("the agent", func() bool { return v.dial() != nil })
	if text := v.read("out.log"); text != "" {
		t.Errorf("the UART has %q", text)
	}
}

// TestTheRealShimReachesTheAgent has the shim start the stand-in, with the UART as console and as the way to the agent.
func TestTheRealShimReachesTheAgent(t *testing.T) {
	v := prepare(t)
	v.configFile(func(object) {})
	program, err := os.Executable()
	must(t, err)
	text, err := json.Marshal(object{
		"version": 1, "sandbox": "sbx_test",
		"vmm": object{
			"argv": []string{program, asVMM, "--no-api", "--config-file", "config.json", "--log-path", "firecracker.log"},
			"env":  object{"PATH": os.Getenv("PATH")}, "maxFiles": 256,
		},
		"console": object{"log": "console.log", "maxBytes": 1 << 20},
		"serial":  object{"kind": "uart", "socket": "serial.sock"},
	})
	must(t, err)
	v.write("shim.json", string(text))
	started := exec.Command(program, "run")
	started.Dir, started.Stderr = v.dir, os.Stderr
	out, err := started.StdoutPipe()
	must(t, err)
	must(t, started.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	if !strings.Contains(line, `"started"`) {
		t.Fatalf("the shim says %s", line)
	}
	t.Cleanup(func() { v.killVMM(); _ = started.Wait() })

	serial, err := net.Dial("unix", v.path("serial.sock"))
	must(t, err)
	defer serial.Close()
	must(t, serial.SetDeadline(time.Now().Add(2*patience)))
	_, err = io.WriteString(serial, "CONNECT 9000\n")
	must(t, err)
	if !readOK(t, serial) {
		t.Fatal("the serial link refuses")
	}
	overUART := greet(t, serial)
	if output := overUART.command("echo", "over the UART"); output != "over the UART\n" {
		t.Errorf("the guest says %q", output)
	}
	greet(t, v.dial())
	v.await("the console", func() bool {
		return strings.Contains(v.read("console.log"), "ready on vsock port 9000") &&
			strings.Contains(v.read("console.log"), "ready on the serial line ttyS0")
	})
	if text := v.read("console.log"); strings.ContainsAny(text, "\x1e") || strings.Contains(text, "?") {
		t.Errorf("frames are on the console: %q", text)
	}
	overUART.send(object{"type": "shutdown", "mode": "reboot", "graceMs": 100})
	must(t, started.Wait())
	var exit record.Exit
	must(t, json.Unmarshal([]byte(v.read("exit.json")), &exit))
	if !strings.Contains(v.read("exit.json"), `"code":0`) {
		t.Errorf("the VMM ended so: %s", v.read("exit.json"))
	}
}

// killVMM ends what a failed test has left.
func (v *vmm) killVMM() {
	var run struct{ VMM procid.ID }
	if text, err := os.ReadFile(v.path("run.json")); err != nil || json.Unmarshal(text, &run) != nil {
		return
	}
	if alive, err := run.VMM.IsAlive(); err == nil && alive {
		must(v.t, syscall.Kill(run.VMM.Pid, syscall.SIGKILL))
	}
}
