package main

import (
	"bufio"
	"encoding/json"
	"errors"
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
//	ping TEXT                the text
//	spawn PROGRAM ARGUMENT…  runs a program to its end; a line with the nanoseconds that it took
//	spawn-cold PROGRAM …     the same, with nothing of the disk in memory
//	read-all FOLDER          reads all files below it, with nothing of the disk in memory; nanoseconds again
//	read-pages FOLDER COUNT  reads single pages of large files, likewise
//	make SIZE PATH           writes a file of random bytes; an empty line
//	remove PATH              removes a file, if it is there; an empty line
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

func converse(stream io.ReadWriter) error {
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
	case len(request) == 2 && request[0] == "ping":
		return request[1], nil
	case len(request) == 3 && request[0] == "make":
		size, err := strconv.ParseInt(request[1], 10, 64)
		if err != nil {
			return "", err
		}
		return "", makeFile(size, request[2])
	case len(request) == 2 && request[0] == "remove":
		err := os.Remove(request[1])
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return "", err
	case len(request) >= 2 && request[0] == "spawn":
		return nanoseconds(spawn(request[1:]))
	case len(request) >= 2 && request[0] == "spawn-cold":
		if err := dropCaches(); err != nil {
			return "", err
		}
		return nanoseconds(spawn(request[1:]))
	case len(request) == 2 && request[0] == "read-all":
		return nanoseconds(readAll(request[1]))
	case len(request) == 3 && request[0] == "read-pages":
		count, err := strconv.Atoi(request[2])
		if err != nil {
			return "", err
		}
		return nanoseconds(readPages(request[1], count))
	case len(request) == 4 && (request[0] == "receive" || request[0] == "send"):
		size, err := strconv.ParseInt(request[2], 10, 64)
		if err != nil {
			return "", err
		}
		return pumps[request[0]+" "+request[1]](size, request[3], in, out)
	}
	return "", fmt.Errorf("not a request")
}

func nanoseconds(took time.Duration, err error) (string, error) {
	return strconv.FormatInt(took.Nanoseconds(), 10), err
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
func spawn(argv []string) (time.Duration, error) {
	started := time.Now()
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
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
		err = fmt.Errorf("%s exited with %d", argv[0], status.ExitStatus())
	}
	return time.Since(started), err
}
