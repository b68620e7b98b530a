package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"bandsox.dev/guest/internal/standin/arguments"
	"bandsox.dev/guest/internal/standin/strict"
)

// Release is what this stands in for unless it is told otherwise.
const Release = "1.17.0"

// oldRelease has the API that the fault `old` is about.
const oldRelease = "1.10.1"

// Flags of the stand-in's own, which come before Firecracker's.
const (
	releaseFlag = "--stand-in-version"
	faultFlag   = "--stand-in-fault"
)

// known are Firecracker's arguments.
var known = []arguments.Argument{
	{Name: "api-sock", TakesValue: true, Default: "/run/firecracker.socket"},
	{Name: "id", TakesValue: true, Default: "anonymous-instance"},
	{Name: "seccomp-filter", TakesValue: true, Forbids: "no-seccomp"},
	{Name: "no-seccomp", Forbids: "seccomp-filter"},
	{Name: "start-time-us", TakesValue: true},
	{Name: "start-time-cpu-us", TakesValue: true},
	{Name: "parent-cpu-time-us", TakesValue: true},
	{Name: "config-file", TakesValue: true},
	{Name: "metadata", TakesValue: true},
	{Name: "no-api", Requires: "config-file"},
	{Name: "log-path", TakesValue: true},
	{Name: "level", TakesValue: true},
	{Name: "module", TakesValue: true},
	{Name: "show-level"},
	{Name: "show-log-origin"},
	{Name: "metrics-path", TakesValue: true},
	{Name: "boot-timer"},
	{Name: "version"},
	{Name: "snapshot-version"},
	{Name: "describe-snapshot", TakesValue: true},
	{Name: "http-api-max-payload-size", TakesValue: true},
	{Name: "mmds-size-limit", TakesValue: true},
	{Name: "enable-pci"},
}

// snapshotVersion is the data format of a real 1.17.
const snapshotVersion = "v11.0.0"

// Run is the program, with the words after its name. It returns the exit status, or never: then Exit was called.
func Run(words []string, host Host) int {
	release, faults, words, err := ownFlags(words)
	if err != nil {
		fmt.Fprintln(host.Errors, "stand-in-firecracker:", err)
		return statusBadArguments
	}
	v, err := newVMM(host, release, faults)
	if err != nil {
		fmt.Fprintln(host.Errors, "stand-in-firecracker:", err)
		return statusBadArguments
	}
	given, err := arguments.Parse(words, known)
	if err != nil {
		v.log.error("Arguments parsing error: %v \n\nFor more information try --help.", err)
		fmt.Fprintf(host.Errors, "Error: ParseArguments(%q)\n", err.Error())
		v.log.error("Firecracker exiting with error. exit_code=%d", statusBadArguments)
		return statusBadArguments
	}
	return v.run(given)
}

// ownFlags takes the stand-in's flags off.
func ownFlags(words []string) (release string, faults Faults, rest []string, err error) {
	for len(words) >= 2 && (words[0] == releaseFlag || words[0] == faultFlag) {
		if words[0] == releaseFlag {
			release = strings.TrimPrefix(words[1], "v")
		} else if err := faults.Set(words[1]); err != nil {
			return "", faults, nil, err
		}
		words = words[2:]
	}
	switch {
	case release == "" && faults.Old:
		release = oldRelease
	case release == "":
		release = Release
	}
	return release, faults, words, nil
}

func (v *vmm) run(given *arguments.Arguments) int {
	switch {
	case given.Has("help"):
		fmt.Fprintf(v.host.Output, "Firecracker v%s\n\n", v.release)
		for _, argument := range known {
			fmt.Fprintf(v.host.Output, "  --%s\n", argument.Name)
		}
		return statusOK
	case given.Has("version"):
		fmt.Fprintf(v.host.Output, "Firecracker v%s\n\n", v.release)
		v.log.info("Firecracker exiting successfully. exit_code=0")
		return statusOK
	case given.Has("snapshot-version"):
		fmt.Fprintln(v.host.Output, snapshotVersion)
		return statusOK
	case given.Has("describe-snapshot"):
		return v.describe(given.Value("describe-snapshot"))
	}
	v.id = given.Value("id")
	if err := arguments.CheckID(v.id); err != nil {
		v.abort("Invalid instance ID: %v", err)
	}
	v.log.instance, v.metrics.instance = v.id, v.id
	v.hasPCI = given.Has("enable-pci")
	if err := v.logFrom(given); err != nil {
		return v.failure(statusError, "LoggerInitialization", "Could not initialize logger: "+err.Error())
	}
	if level := given.Value("level"); level != "" && !isLevel(level) {
		const text = "Invalid value for logger level: %s.Possible values: [Error, Warning, Info, Debug]"
		return v.failure(statusBadConfig, "InvalidLogLevel", fmt.Sprintf(text, level))
	}
	v.log.info("Running Firecracker v%s", v.release)
	v.hearSignals()
	if path := given.Value("metrics-path"); path != "" {
		if err := v.metrics.open(metricsConfig{MetricsPath: path}); err != nil {
			return v.failure(statusError, "MetricsInitialization", "Could not initialize metrics: "+err.Error())
		}
	}
	return v.bringUp(given)
}

func (v *vmm) bringUp(given *arguments.Arguments) int {
	if path := given.Value("seccomp-filter"); path != "" {
		if err := readable(path); err != nil {
			return v.failure(statusError, "SeccompFilter", "Seccomp error: Filter file open error: "+osError(err))
		}
	}
	var config []byte
	if path := given.Value("config-file"); path != "" {
		var err error
		if config, err = os.ReadFile(path); err != nil {
			v.abort("Unable to open or read from the configuration file: %s", osError(err))
		}
	}
	if path := given.Value("metadata"); path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			v.abort("Unable to open or read from the mmds content file: %s", osError(err))
		}
		if err := json.Unmarshal(text, &v.mmds); err != nil {
			v.abort("MMDS error: metadata provided not valid json: %v", err)
		}
	}
	if v.faults.CrashAt == stepStart {
		v.crash(stepStart)
	}
	if v.faults.HangAt == stepStart {
		select {}
	}
	var listener net.Listener
	runError := "RunWithoutApiError error: Failed to build MicroVM from Json: "
	if !given.Has("no-api") {
		runError = "RunWithApi error: Failed to build MicroVM from Json: "
		path := given.Value("api-sock")
		var err error
		if listener, err = listen(path); err != nil {
			reason, text := osError(err), "Failed to bind and run the HTTP server: IO error: "+osError(err)
			if errors.Is(err, syscall.EADDRINUSE) {
				reason, text = path, fmt.Sprintf("Failed to open the API socket at: %s. Check that it is not already used.", path)
			}
			return v.failure(statusError, fmt.Sprintf("RunWithApi(FailedToBindSocket(%q))", reason), "RunWithApi error: "+text)
		}
		v.log.info("Listening on API socket (%q).", path)
	}
	if config != nil {
		v.mutex.Lock() // requests wait for the machine
		err := v.configure(config)
		v.mutex.Unlock()
		if err != nil {
			return v.failure(statusError, "BuildFromJson", runError+err.Error())
		}
	}
	if listener == nil {
		select {}
	}
	if err := v.serve(listener); err != nil {
		return v.failure(statusError, "RunWithApi", err.Error())
	}
	return statusOK
}

// listen makes the API socket. Its file stays when the process ends.
func listen(path string) (net.Listener, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	return listener, nil
}

// configure does what a configuration file says, in Firecracker's order, and starts the machine.
func (v *vmm) configure(text []byte) error {
	var config configFile
	if err := strict.Decode(text, &config, v.version); err != nil {
		return refuse("Configuration for VMM from one single json failed: Invalid JSON: %v", err)
	}
	if err := v.configureParts(config); err != nil {
		return refuse("Configuration for VMM from one single json failed: %v", renamed(err))
	}
	// The step InstanceStart is the same without a request.
	v.stumble("PUT", "/actions", []byte(`{"action_type":"InstanceStart"}`))
	if err := v.start(); err != nil {
		return refuse("Could not Start MicroVM from one single json: %s", strings.TrimPrefix(err.Error(), "Start microvm error: "))
	}
	v.log.info("Successfully started microvm that was configured from one single json")
	return nil
}

func (v *vmm) configureParts(config configFile) error {
	steps := []func() error{}
	add := func(isThere bool, step func() error) {
		if isThere {
			steps = append(steps, step)
		}
	}
	add(config.Logger != nil, func() error { return v.setLogger(*config.Logger) })
	add(config.Metrics != nil, func() error { return v.setMetrics(*config.Metrics) })
	add(config.MachineConfig != nil, func() error { return (&request{vmm: v}).putMachine(*config.MachineConfig) })
	add(true, func() error { return v.setBootSource(config.BootSource) })
	for _, d := range config.Drives {
		d := d
		add(true, func() error { return v.putDrive(d) })
	}
	for _, n := range config.NetworkInterfaces {
		n := n
		add(true, func() error { return v.putNetwork(n) })
	}
	add(config.Vsock != nil, func() error { return v.setVsock(*config.Vsock) })
	add(config.Balloon != nil, func() error { return v.setBalloon(*config.Balloon) })
	add(config.MmdsConfig != nil, func() error { return v.setMmdsConfig(*config.MmdsConfig) })
	add(config.Entropy != nil, func() error { v.config.Entropy = config.Entropy; return nil })
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// renamed gives the name that a part has in errors of the configuration file, where it is not the API's.
func renamed(err error) string {
	for from, to := range map[string]string{
		"Drive config error: ": "Block device error: ", "Network config error: ": "Network device error: ",
		"Machine config error: ": "VM config error: ", "Vsock config error: ": "Vsock device error: ",
		"Balloon config error: ": "Balloon device error: ", "MMMDS config error: ": "MMDS config error: ",
	} {
		if rest := strings.TrimPrefix(err.Error(), from); rest != err.Error() {
			return to + rest
		}
	}
	return err.Error()
}

func (v *vmm) logFrom(given *arguments.Arguments) error {
	config := logger{}
	if path := given.Value("log-path"); path != "" {
		config.LogPath = &path
	}
	if level := given.Value("level"); isLevel(level) {
		config.Level = &level
	}
	isShown := true
	if given.Has("show-level") {
		config.ShowLevel = &isShown
	}
	if given.Has("show-log-origin") {
		config.ShowLogOrigin = &isShown
	}
	return v.log.update(config)
}

func isLevel(word string) bool {
	_, isKnown := levels[strings.ToLower(word)]
	return isKnown
}

func (v *vmm) describe(path string) int {
	const kind, printing = "PrintSnapshotDataFormat", "When printing Snapshot Data format: "
	text, err := os.ReadFile(path)
	if err != nil {
		return v.failure(statusError, kind, printing+"Unable to open snapshot state file: "+osError(err))
	}
	if !strings.HasPrefix(string(text), stateMagic) {
		return v.failure(statusError, kind, printing+"Invalid data format version of snapshot file: "+errBitcode)
	}
	fmt.Fprintln(v.host.Output, snapshotVersion)
	return statusOK
}

// failure tells of the end in both of Firecracker's ways: in the log, and short on stderr.
func (v *vmm) failure(status int, kind, text string) int {
	v.log.error("%s", text)
	fmt.Fprintf(v.host.Errors, "Error: %s\n", kind)
	v.log.error("Firecracker exiting with error. exit_code=%d", status)
	return status
}

// fail is failure for a process that has begun.
func (v *vmm) fail(kind, text string) {
	v.log.error("%s", text)
	fmt.Fprintf(v.host.Errors, "Error: %s\n", kind)
	v.end(statusError)
}

// abort is the end by a panic of Rust's: a message, and SIGABRT.
func (v *vmm) abort(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	v.log.error("Firecracker panicked: %s", text)
	fmt.Fprintf(v.host.Errors, "thread 'main' panicked: %s\n", text)
	dieBy(syscall.SIGABRT)
	v.host.Exit(statusError)
}

// hearSignals lets the machine's processes go with it. As process 1 of a PID namespace a process is deaf to signals that it has no
// handler for, and Firecracker has none for SIGTERM and SIGINT.
func (v *vmm) hearSignals() {
	heard := make(chan os.Signal, 4)
	signal.Notify(heard, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		for sig := range heard {
			switch {
			case sig == syscall.SIGPIPE: // the real one counts it, and goes on
			case sig == syscall.SIGHUP:
				v.log.error("Shutting down VM after intercepting signal 1, code 0.")
				v.end(statusHangup)
			case os.Getpid() != 1:
				v.dieBySignal(sig.(syscall.Signal))
			}
		}
	}()
}

// statusHangup is what Firecracker makes of SIGHUP.
const statusHangup = 156

func (v *vmm) dieBySignal(sig syscall.Signal) {
	v.ending.Do(func() { // without the last words of an end in good order
		if v.machine != nil {
			v.machine.Die()
		}
		dieBy(sig)
		v.host.Exit(statusError)
	})
}
