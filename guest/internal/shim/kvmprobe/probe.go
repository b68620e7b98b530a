// Package kvmprobe finds out whether ordinary guests run on /dev/kvm, by running one. Neither the device nor the processor's flags
// say so: a paravirtual KVM without vmx or svm opens, answers its API, makes VMs, and emulates simple code instruction by instruction,
// until a real kernel's first SSE instruction ends it or its boot lasts for ever.
package kvmprobe

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"bandsox.dev/guest/internal/shim/tsc"
)

// Command is the shim's own argument for the process that runs the guest.
const Command = "probe-kvm-guest"

const (
	statusUsable    = 0
	statusFailed    = 1
	statusNotUsable = 3
	// probeLimit is far above what the guest takes: some milliseconds, and about 0.2 s where the KVM itself runs in an emulator.
	probeLimit = 3 * time.Second
)

// Result is what the probe prints.
type Result struct {
	Usable bool `json:"usable"`
	// Reason is a sentence for people.
	Reason     string `json:"reason"`
	APIVersion int    `json:"apiVersion,omitempty"`
	// TSCKHz is how fast the processor's clock runs: package tsc.
	TSCKHz uint64 `json:"tscKhz,omitempty"`
}

// Probe prints a Result and returns the status to exit with. The guest runs in a process of its own, since only its end stops a guest
// for certain.
func Probe(out io.Writer) int {
	limit, cancel := context.WithTimeout(context.Background(), probeLimit)
	defer cancel()
	stopwatch := tsc.Start()
	guest := exec.CommandContext(limit, "/proc/self/exe", Command)
	text, err := guest.Output()
	result := Result{}
	switch {
	case limit.Err() != nil:
		result.Reason = fmt.Sprintf("A guest of a few instructions did not end within %v: KVM emulates instead of running, or hangs.", probeLimit)
	case err != nil && len(text) == 0:
		result.Reason = fmt.Sprintf("The process that tries the guest failed: %v.", err)
	default:
		if err := json.Unmarshal(text, &result); err != nil {
			result = Result{Reason: fmt.Sprintf("The process that tries the guest answered nonsense: %v.", err)}
		}
	}
	result.TSCKHz = stopwatch.KHz()
	return printResult(out, result)
}

// RunGuest is the process that tries the guest; it prints a Result too.
func RunGuest(out io.Writer) int {
	return printResult(out, tryGuest())
}

func printResult(out io.Writer, result Result) int {
	if err := json.NewEncoder(out).Encode(result); err != nil {
		fmt.Fprintln(os.Stderr, "bandsox-shim:", err)
		return statusFailed
	}
	if !result.Usable {
		return statusNotUsable
	}
	return statusUsable
}
