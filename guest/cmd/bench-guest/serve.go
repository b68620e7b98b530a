package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// blockBytes is what is read and written at once.
const blockBytes = 65536

// serve answers requests, each a line of words:
//
//	hello                    a line of JSON: when the parts of the boot were done
//	echo                     from then on, whatever comes
//	spawn PROGRAM            runs a program to its end; a line with the nanoseconds that it took
//	receive MODE SIZE PATH   takes SIZE bytes; a line with their checksum. MODE: `plain` drops them, `file` writes PATH
//	send MODE SIZE PATH      gives SIZE bytes, and a line with their checksum. MODE: `plain` is memory, `file` reads PATH
func serve(port uint32) error {
	listener, err := listen(port)
	if err != nil {
		return err
	}
	noteStage("ready")
	for {
		stream, err := accept(listener)
		if err != nil {
			return err
		}
		go func() {
			defer stream.Close() // the host hangs up first: nothing to tell
			if err := converse(stream); err != nil && err != io.EOF {
				fmt.Println("bench-guest:", err)
			}
		}()
	}
}

func converse(stream *os.File) error {
	in := bufio.NewReaderSize(stream, blockBytes)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		reply, err := answer(strings.Fields(line), in, stream)
		if err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(line), err)
		}
		if _, err := io.WriteString(stream, reply+"\n"); err != nil {
			return err
		}
	}
}

func answer(request []string, in *bufio.Reader, out io.Writer) (string, error) {
	switch {
	case len(request) == 1 && request[0] == "hello":
		text, err := json.Marshal(stages)
		return string(text), err
	case len(request) == 1 && request[0] == "echo":
		return "", echo(in, out)
	case len(request) == 2 && request[0] == "spawn":
		took, err := spawn(request[1])
		return strconv.FormatInt(took.Nanoseconds(), 10), err
	case len(request) == 4 && (request[0] == "receive" || request[0] == "send"):
		size, err := strconv.ParseInt(request[2], 10, 64)
		if err != nil {
			return "", err
		}
		return pumps[request[0]+" "+request[1]](size, request[3], in, out)
	}
	return "", fmt.Errorf("not a request")
}

func echo(in io.Reader, out io.Writer) error {
	block := make([]byte, blockBytes)
	for {
		n, err := in.Read(block)
		if err != nil {
			return err
		}
		if _, err := out.Write(block[:n]); err != nil {
			return err
		}
	}
}

// spawn forks, executes and waits.
func spawn(program string) (time.Duration, error) {
	started := time.Now()
	pid, err := syscall.ForkExec(program, []string{program}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, err
	}
	var status syscall.WaitStatus
	for {
		if _, err = syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			break
		}
	}
	if err == nil && status.ExitStatus() != 0 {
		err = fmt.Errorf("%s exited with %d", program, status.ExitStatus())
	}
	return time.Since(started), err
}
