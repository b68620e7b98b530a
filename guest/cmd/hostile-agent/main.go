// hostile-agent is a guest that breaks the protocol on purpose, for tests of the host. It is never shipped.
//
//	/init                        (as process 1) boots as far as vsock needs and listens on bandsox.port and the ports behind it
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
package main

import (
	"fmt"
	"net"
	"os"

	"bandsox.dev/guest/internal/agent/boot"
	"bandsox.dev/guest/internal/agent/console"
	"bandsox.dev/guest/internal/handshake"
	"bandsox.dev/guest/internal/vsock"
)

const defaultPort = 9000

// byPort has the mode of each port behind the first, which has byPath.
var byPort = []string{byPath, "garbage", "silent", "huge", "drip", "deep", "cut", "flood-pong", "wrong-version", "not-utf8", "empty"}

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
	for i, mode := range byPort {
		if i == 0 && config.Hostile != "" {
			mode = config.Hostile
		}
		listener, err := vsock.Listen(config.Port + uint32(i))
		if err != nil {
			return err
		}
		mode := mode
		go accept(listener, func(net.Conn) string { return mode })
	}
	console.Printf("hostile ready on vsock port %d (boot %d ms)", config.Port, boot.UptimeMs())
	modules.Load("load.late")
	return nil
}

func serveLocally(path string) error {
	listener, err := handshake.Listen(path)
	if err != nil {
		return err
	}
	accept(listener, func(conn net.Conn) string {
		i := int(conn.(handshake.Conn).Port) - defaultPort
		if i < 0 || i >= len(byPort) {
			return "silent"
		}
		return byPort[i]
	})
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
