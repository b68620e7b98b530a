// stand-in-jailer takes the place of Firecracker's jailer in tests that run everywhere. It needs root, and is never shipped.
//
//	stand-in-jailer [--stand-in-version 1.10.1] [--stand-in-fault crash-at=STEP|hang-at=STEP]… THE JAILER'S ARGUMENTS
//
// Its own flags may also be appended to a copy of it: package appended.
//
// A crash is SIGKILL before a step: start, folder, copy, netns, limits, cgroup, chroot, devices or exec.
package main

import (
	"fmt"
	"os"
	"runtime"

	"bandsox.dev/guest/internal/standin/appended"
	"bandsox.dev/guest/internal/standin/jailer"
)

func init() { runtime.LockOSThread() } // the main thread: its number is the process's

func main() {
	flags, err := appended.Flags(os.Args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "stand-in-jailer:", err)
		os.Exit(1)
	}
	os.Exit(jailer.Run(append(flags, os.Args[1:]...), os.Stdout, os.Stderr))
}
