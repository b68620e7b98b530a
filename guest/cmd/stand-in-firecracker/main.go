// stand-in-firecracker takes Firecracker's place in tests that run everywhere: the same command line, the same API on the same socket
// with the same rules and errors, and a guest that is our agent's real code, in this process. It is never shipped.
//
//	stand-in-firecracker [--stand-in-version 1.10.1] [--stand-in-fault NAME[=VALUE]]… FIRECRACKER'S ARGUMENTS
//
// The stand-in's own flags may also be appended to a copy of it: package appended.
//
// Faults:
//
//	vsock-refuses       closes every CONNECT without a word
//	vsock-dies=MS       closes the vsock socket and all its connections so long after the start
//	vsock-after-pause   after a pause without a snapshot no CONNECT is answered any more (as 1.16 is by itself: Firecracker's issue 6100)
//	api-slow=MS         each answer comes so much later
//	crash-at=STEP       ends with status 148 at a step: start, an action such as InstanceStart, or a request such as "PUT /vsock"
//	hang-at=STEP        never answers there, nor to whatever comes behind it
//	guest-panics        the kernel panics at boot, which ends the VMM with status 0
//	guest-silent        takes connections and says nothing; guest-silent=deaf listens nowhere
//	boot-takes=MS       so long until the agent listens
//	no-kvm              /dev/kvm is no KVM
//	old                 the API of 1.10
package main

import (
	"fmt"
	"os"

	"bandsox.dev/guest/internal/agent/pack"
	"bandsox.dev/guest/internal/agent/tools"
	"bandsox.dev/guest/internal/standin/appended"
	"bandsox.dev/guest/internal/standin/firecracker"
)

func main() {
	if len(os.Args) >= 3 && os.Args[1] == tools.Word { // the agent's own programs are in this binary, as in the agent's
		os.Exit(pack.Main(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	flags, err := appended.Flags(os.Args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "stand-in-firecracker:", err)
		os.Exit(1)
	}
	os.Exit(firecracker.Run(append(flags, os.Args[1:]...), firecracker.Host{Input: os.Stdin, Output: os.Stdout, Errors: os.Stderr, Exit: os.Exit}))
}
