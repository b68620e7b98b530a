// Command bandsox-shim stands beside one VM; SHIM.md is its contract.
package main

import (
	"fmt"
	"os"
	"strconv"

	"bandsox.dev/guest/internal/shim"
	"bandsox.dev/guest/internal/shim/digest"
	"bandsox.dev/guest/internal/shim/kvmprobe"
	"bandsox.dev/guest/internal/shim/launch"
	"bandsox.dev/guest/internal/shim/overlay"
	"bandsox.dev/guest/internal/shim/qemustate"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "0.1.0"

const usage = "usage: bandsox-shim run | adopt | probe-kvm | apply FILE CHANGES | digest FILE… |" +
	" split-state SOCKET OWNER MEMORY DEVICES BYTES | version"

// exitUsage is the status for arguments that make no sense.
const exitUsage = 2

func main() {
	os.Exit(dispatch(os.Args[1:]))
}

func dispatch(arguments []string) int {
	command := ""
	if len(arguments) > 0 {
		command = arguments[0]
	}
	switch {
	// The last two are the shim's own, for starting itself.
	case command == launch.Command && len(arguments) == 2:
		return launch.Become(arguments[1])
	case command == kvmprobe.Command && len(arguments) == 1:
		return kvmprobe.RunGuest(os.Stdout)
	case command == "apply" && len(arguments) == 3:
		return apply(arguments[1], arguments[2])
	case command == "split-state" && len(arguments) == 6:
		return splitState(arguments[1:])
	case command == "digest" && len(arguments) > 1:
		return digestFiles(arguments[1:])
	case len(arguments) != 1:
	case command == "run":
		return shim.Run(os.Stdout)
	case command == "adopt":
		return shim.Adopt(os.Stdout)
	case command == "probe-kvm":
		return kvmprobe.Probe(os.Stdout)
	case command == "version":
		fmt.Println(version)
		return 0
	}
	fmt.Fprintln(os.Stderr, usage)
	return exitUsage
}

// splitState takes the state of a VMM that sends it.
func splitState(arguments []string) int {
	owner, ownerErr := strconv.Atoi(arguments[1])
	memoryBytes, err := strconv.ParseInt(arguments[4], 10, 64)
	if ownerErr != nil || err != nil {
		fmt.Fprintln(os.Stderr, usage)
		return exitUsage
	}
	save := qemustate.Save{
		Socket: arguments[0], Owner: owner, Memory: arguments[2], Devices: arguments[3], MemoryBytes: memoryBytes,
	}
	return save.Run(os.Stdout)
}

// digestFiles sums up files.
func digestFiles(files []string) int {
	if err := digest.Print(os.Stdout, files); err != nil {
		fmt.Fprintln(os.Stderr, "bandsox-shim:", err)
		return 1
	}
	return 0
}

// apply lays changes, a sparse file, over another file.
func apply(file, changes string) int {
	if err := overlay.Apply(file, changes); err != nil {
		fmt.Fprintln(os.Stderr, "bandsox-shim:", err)
		return 1
	}
	return 0
}
