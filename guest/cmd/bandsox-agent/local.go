package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/agent/links"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/agent/serve"
	"bandsox.dev/guest/internal/agent/tools"
	"bandsox.dev/guest/internal/handshake"
)

// serveLocally serves on a Unix socket, whatever the port of a CONNECT, so that the host's code can be tested against the real
// agent without a machine. A shutdown ends this program and nothing else.
func serveLocally(path string) error {
	if err := tools.Hold(); err != nil {
		return err
	}
	listener, err := handshake.Listen(path)
	if err != nil {
		return err
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("cannot read the boot's id: %w", err)
	}
	server := &serve.Server{
		Version: version, BootID: strings.TrimSpace(string(bootID)), Reaper: reaper.New(),
		UptimeMs: boot.UptimeMs, Stages: func() map[string]int64 { return nil },
		Links: (&links.State{}).Message,
	}
	server.Shutdown = func(string, time.Duration) { server.Stop() }
	go server.Reaper.Run()
	server.Accept(listener)
	return nil
}
