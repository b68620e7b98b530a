// stand-in-vmm takes QEMU's place in benchmarks of the manager: it takes the same arguments and inherited sockets, answers on the
// monitors, runs nothing, and ends when it is told to. It is never shipped.
//
//	qemu-system-x86_64 --version      says that it is a QEMU that is new enough
//	qemu-system-x86_64 ARGUMENT…      says on stdout when its main began, and stays
//	stand-in-vmm start-up             prints how many ns lie between its exec and its main
//
// Times are those of CLOCK_MONOTONIC, which Node's process.hrtime has too.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// startedAgain is the argument of the second start of "start-up"; the time of the exec follows.
const startedAgain = "started-again"

func main() {
	began := monotonicNs()
	if err := run(began, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stand-in-vmm:", err)
		os.Exit(1)
	}
}

func run(began int64, arguments []string) error {
	first := ""
	if len(arguments) > 0 {
		first = arguments[0]
	}
	switch {
	case first == "--version":
		fmt.Println("QEMU emulator version 7.2.0 (a stand-in of BandSox's benchmarks)")
		return nil
	case first == "start-up":
		argv := []string{os.Args[0], startedAgain, strconv.FormatInt(monotonicNs(), 10)}
		return syscall.Exec("/proc/self/exe", argv, nil)
	case first == startedAgain && len(arguments) == 2:
		executed, err := strconv.ParseInt(arguments[1], 10, 64)
		if err != nil {
			return err
		}
		fmt.Println(began - executed)
		return nil
	}
	fmt.Println("main began", began)
	return stay(arguments)
}

// stay returns when it is told to end: by SIGTERM, as QEMU with status 0, or on a monitor.
func stay(arguments []string) error {
	end := make(chan struct{}, 1)
	sockets, err := monitorsOf(arguments)
	if err != nil {
		return err
	}
	for _, fd := range sockets {
		listener, err := listenerOf(fd)
		if err != nil {
			return err
		}
		go serve(listener, end)
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	select {
	case <-terminated:
	case <-end:
		// The answer is read before the connection ends.
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}
