// bandsox-agent is process 1 of a sandbox's machine. See PROTOCOL.md for what it says, package boot for how it starts.
//
//	/init                             (as process 1) boots the machine and serves on vsock and on the serial line
//	bandsox-agent serve SOCKET        serves on a Unix socket of this machine, for tests: commands run here, as this user
//	bandsox-agent serve-serial SOCKET serves as the far end of a serial line, on a Unix socket or an inherited one (fd=3), for tests
//	bandsox-agent tool NAME …         is one of the agent's own programs, for `exec` with `tool`: package tools
//	bandsox-agent version
package main

import (
	"fmt"
	"os"

	"bandsox.dev/guest/internal/agent/pack"
	"bandsox.dev/guest/internal/agent/tools"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "0.1.0"

func main() {
	switch {
	case os.Getpid() == 1:
		runMachine()
	case len(os.Args) >= 3 && os.Args[1] == tools.Word:
		os.Exit(pack.Main(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	case len(os.Args) == 3 && os.Args[1] == "serve":
		if err := serveLocally(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "bandsox-agent:", err)
			os.Exit(1)
		}
	case len(os.Args) == 3 && os.Args[1] == "serve-serial":
		if err := serveSerially(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "bandsox-agent:", err)
			os.Exit(1)
		}
	case len(os.Args) == 2 && os.Args[1] == "version":
		fmt.Println(version)
	default:
		fmt.Fprintln(os.Stderr, "usage: bandsox-agent serve SOCKET | bandsox-agent serve-serial SOCKET | bandsox-agent version")
		os.Exit(2)
	}
}
