// bench-guest is the bare program that bench/ compares the agent with. It is never shipped.
//
//	/init                    (as process 1) boots the least that a sandbox is, and serves on vsock, or on the serial line
//	bench-guest serve PORT   serves on a vsock port, beside the agent in the same machine
//	bench-guest checksum     prints how many bytes per second each checksum takes here, as JSON
//
// It shares no code with the agent, so that what slows the agent does not slow what it is measured by.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	var err error
	switch {
	case os.Getpid() == 1:
		err = runMachine()
	case len(os.Args) == 3 && os.Args[1] == "serve":
		var port uint64
		if port, err = strconv.ParseUint(os.Args[2], 10, 32); err == nil {
			err = serve(uint32(port))
		}
	case len(os.Args) == 2 && os.Args[1] == "checksum":
		err = printChecksumRates()
	default:
		err = fmt.Errorf("usage: bench-guest serve PORT | bench-guest checksum")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-guest:", err)
		os.Exit(1)
	}
}
