package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/agent/links"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/agent/serialline"
	"bandsox.dev/guest/internal/agent/serve"
	"bandsox.dev/guest/internal/agent/tools"
	"bandsox.dev/guest/internal/handshake"
	"bandsox.dev/guest/internal/serial"
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
	return serveHere(listener)
}

// inheritedSocket begins the name of a listening socket that this program was started with: its descriptor follows.
const inheritedSocket = "fd="

// serveSerially serves by the serial protocol, in its raw coding, whoever connects to a Unix socket: what a VMM has of its guest.
func serveSerially(path string) error {
	listener, err := listenAt(path)
	if err != nil {
		return err
	}
	return serveHere(serialline.Listen(serialline.ListenOn(listener), serial.Settings{Coding: serial.Raw}))
}

func listenAt(path string) (net.Listener, error) {
	number := strings.TrimPrefix(path, inheritedSocket)
	if number == path {
		return net.Listen("unix", path)
	}
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close() // the listener has its own
	return net.FileListener(file)
}

func serveHere(listener serve.Listener) error {
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
