package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// monitorsOf returns the inherited sockets of all `-mon chardev=ID`, each of a `-chardev socket,id=ID,fd=N,…`.
func monitorsOf(arguments []string) ([]int, error) {
	sockets := map[string]int{}
	monitors := []int{}
	for i := 0; i+1 < len(arguments); i++ {
		options := optionsOf(arguments[i+1])
		switch arguments[i] {
		case "-chardev":
			if text, isInherited := options["fd"]; isInherited {
				fd, err := strconv.Atoi(text)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", arguments[i+1], err)
				}
				sockets[options["id"]] = fd
			}
		case "-mon":
			fd, isKnown := sockets[options["chardev"]]
			if !isKnown {
				return nil, fmt.Errorf("no socket for the monitor %s", arguments[i+1])
			}
			monitors = append(monitors, fd)
		}
	}
	return monitors, nil
}

// optionsOf reads `kind,key=value,…`.
func optionsOf(argument string) map[string]string {
	options := map[string]string{}
	for _, part := range strings.Split(argument, ",") {
		if key, value, found := strings.Cut(part, "="); found {
			options[key] = value
		}
	}
	return options
}

func listenerOf(fd int) (net.Listener, error) {
	file := os.NewFile(uintptr(fd), "monitor")
	if file == nil {
		return nil, fmt.Errorf("descriptor %d is no monitor's", fd)
	}
	defer file.Close() // the listener has its own
	return net.FileListener(file)
}

// serve speaks as much of the QEMU Machine Protocol as a machine that runs needs, with one client at a time.
func serve(listener net.Listener, end chan<- struct{}) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "stand-in-vmm:", err)
			return
		}
		talk(conn, end)
		_ = conn.Close() // the client has gone, or does not read
	}
}

type command struct {
	Execute string          `json:"execute"`
	ID      json.RawMessage `json:"id,omitempty"`
}

type answer struct {
	Return any             `json:"return"`
	ID     json.RawMessage `json:"id,omitempty"`
}

// talk returns when the client has gone.
func talk(conn net.Conn, end chan<- struct{}) {
	if _, err := fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}`); err != nil {
		return
	}
	answers := json.NewEncoder(conn)
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var asked command
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return
		}
		if err := answers.Encode(answer{Return: resultOf(asked.Execute), ID: asked.ID}); err != nil {
			return
		}
		if asked.Execute == "quit" || asked.Execute == "system_powerdown" {
			end <- struct{}{}
			return
		}
	}
}

func resultOf(command string) any {
	if command == "query-status" {
		return map[string]any{"status": "running", "running": true, "singlestep": false}
	}
	return struct{}{}
}
