// hostile-agent is a guest that breaks the protocol on purpose, for tests of the host. It is never shipped.
//
//	/init                        (as process 1) boots as far as its links need, and listens on bandsox.port and the ports behind it,
//	                             over vsock and over the serial line that bandsox.serial names
//	hostile-agent serve SOCKET   does the same on a Unix socket with the CONNECT handshake, without a machine
//
// The port, counted from bandsox.port (9000 on a Unix socket), chooses what goes wrong:
//
//	port  mode           what it does
//	+0    by-path        a right hello; then the last part of the operation's path, or of argv[0], names one of the modes
//	+1    garbage        bytes that are no frames
//	+2    silent         never answers
//	+3    huge           a frame of 4 GiB less one byte
//	+4    drip           a good frame, one byte per second
//	+5    deep           JSON with a hundred thousand brackets
//	+6    cut            closes in the middle of a frame
//	+7    flood-pong     pongs without end
//	+8    wrong-version  a hello that chooses a protocol the host did not offer
//	+9    not-utf8       a message that is not UTF-8
//	+10   empty          a frame of length 0
//	+11   able           as by-path, with every capability in the hello
//
// bandsox.hostile=MODE on the kernel's command line puts a mode on bandsox.port itself. Modes that need an operation:
//
//	flood-stdout, flood-stderr   (exec) output without end
//	flood-entries                (list) entries without end
//	strange-names                (list, stat) names with "../", slashes, HTML and control characters
//	flood-data                   (download) data far beyond the size of the ready
//	huge-size                    (download) a size of 2^53-1 and one byte of data
//	short-data                   (download) less than the size, with the right checksum for what came
//	bad-checksum                 (download, upload) a checksum that is not the data's
//	ack-beyond                   (upload, exec with stdin) an ack of more than was sent
//	ack-back                     (upload) an ack that goes back
//	flood-ack                    (upload) acks without end
//	bad-exit                     (exec) an exit with code and signal
//	late-output                  (exec) output behind the exit
//	wrong-answer                 the answer to another operation
//	again                        (download, upload, exec) a right beginning, and the end of the connection: each time that the host comes back
//	ready-beyond                 (download, upload) a ready from far behind where the host is
//	flood-ready                  (download, upload) readys without end
//	attached-elsewhere           (attach, behind exec) an attached at another offset
//	attached-beyond              (attach, behind exec) an attached that has input which nobody sent
//	flood-attached               (attach, behind exec) attacheds without end
//	ack-again                    (attach, behind exec with stdin) the same ack, and the end of the connection, each time
//	ack-nothing                  (exec) an ack of input where there is none
//	strange-links                (links) names and reasons that a terminal would obey
//	connect-ack-beyond, connect-ack-back, connect-eof-twice, connect-late-data, connect-flood, connect-slivers
//	                             (connect, by the host's name) what they say; slivers are data frames of one byte
//
// Of the serial line the layers below (SERIAL.md) go wrong too, while a port from 1,000,000 on is dialled, which is 1,000,000 + 100 mode +
// seconds: for so long the whole line is what lineModes (line.go) says of the mode, then it is honest again.
package main

import (
	"fmt"
	"net"
	"os"
	"time"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/handshake"
	"bandsox.dev/guest/internal/vsock"
)

const (
	defaultPort = 9000
	// linkRetry is for links whose module is not loaded yet, or that this machine does not have.
	linkRetry = 100 * time.Millisecond
)

// byPort has the mode of each port behind the first, which has byPath.
var byPort = []string{byPath, "garbage", "silent", "huge", "drip", "deep", "cut", "flood-pong", "wrong-version", "not-utf8", "empty", able}

func main() {
	var err error
	switch {
	case os.Getpid() == 1:
		err = bootAndServe()
		if err != nil {
			console.Printf("hostile: %v", err)
		}
		select {} // the end of process 1 is a kernel panic
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serveLocally(os.Args[2])
	default:
		err = fmt.Errorf("usage: hostile-agent serve SOCKET")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hostile-agent:", err)
		os.Exit(1)
	}
}

func bootAndServe() error {
	if err := boot.EarlyMounts(); err != nil {
		return err
	}
	config, err := boot.ReadConfig()
	if err != nil {
		return err
	}
	modules, err := boot.OpenModules()
	if err != nil {
		return err
	}
	modules.Load("load.boot")
	go serveSerial(config)
	go modules.Load("load.late")
	for i := range byPort {
		go serveVsock(config, uint32(i))
	}
	return nil
}

// modeOf is the mode of a port, by its distance from the first.
func modeOf(first string, offset uint32) string {
	switch {
	case offset == 0 && first != "":
		return first
	case offset < uint32(len(byPort)):
		return byPort[offset]
	}
	return "silent"
}

func serveVsock(config boot.Config, offset uint32) {
	for ; ; time.Sleep(linkRetry) {
		listener, err := vsock.Listen(config.Port + offset)
		if err != nil {
			continue // a machine without vsock looks for it as long as it lives
		}
		if offset == 0 {
			console.Printf("hostile ready on vsock port %d (boot %d ms)", config.Port, boot.UptimeMs())
		}
		accept(listener, func(net.Conn) string { return modeOf(config.Hostile, offset) })
		return
	}
}

func serveLocally(path string) error {
	listener, err := handshake.Listen(path)
	if err != nil {
		return err
	}
	accept(listener, func(conn net.Conn) string { return modeOf("", conn.(handshake.Conn).Port-defaultPort) })
	return nil
}

// accept misbehaves on each connection in the mode that modeOf gives.
func accept(listener net.Listener, modeOf func(net.Conn) string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			console.Printf("hostile: %v", err)
			return
		}
		go func() {
			defer console.Contain("misbehaving")
			defer conn.Close() // the host may have closed it in disgust
			(&guest{conn: conn}).serve(modeOf(conn))
		}()
	}
}
