package bridge

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"bandsox.dev/guest/internal/shim/ownsocket"
)

const (
	// answerLimit is the kernel's own limit for vsock, and Firecracker's.
	answerLimit = 2 * time.Second
	// maxUnanswered bounds what is kept of a guest that never answers.
	maxUnanswered = 256
	// maxOKBytes holds "OK ", a u32 and a newline, with some to spare.
	maxOKBytes = 32
)

// DialSocket dials through the socket of a vsock daemon, or of a VMM, which takes a CONNECT line of its own, while the gate is open.
//
// A connection is never given up before its answer: vhost-device-vsock 0.3.0 ends its only worker by a panic when it finds the
// host's end closed as it writes the OK, and the VM's vsock is dead from then on (send_pkt in vsock_conn.rs). Hosts do give up,
// by a time limit, a Ctrl-C or a kill: that is why they have this bridge between them and the daemon.
func DialSocket(path string, gate *Gate) Dial {
	unanswered := make(chan struct{}, maxUnanswered)
	return func(port uint32) (Conn, error) {
		if !gate.passWithin(answerLimit) {
			return nil, errors.New("the machine stands still")
		}
		select {
		case unanswered <- struct{}{}:
		default:
			return nil, fmt.Errorf("%d connections wait for the guest's answer", maxUnanswered)
		}
		conn, err := ownsocket.Dial(path)
		if err != nil {
			<-unanswered
			return nil, err
		}
		daemon := gated{conn, gate}
		answered := make(chan error, 1)
		go func() {
			answered <- askDaemon(daemon, port)
			<-unanswered
		}()
		limit := time.NewTimer(answerLimit)
		defer limit.Stop()
		select {
		case err := <-answered:
			if err != nil {
				_ = daemon.Close() // refused: nothing was exchanged
				return nil, err
			}
			return daemon, nil
		case <-limit.C:
			go func() {
				<-answered
				_ = daemon.Close() // nobody waits for it any more
			}()
			return nil, errors.New("the guest does not answer")
		}
	}
}

// askDaemon sends the line and takes the answer, and not one byte more: those after it are the guest's.
func askDaemon(daemon Conn, port uint32) error {
	if _, err := fmt.Fprintf(daemon, "CONNECT %d\n", port); err != nil {
		return err
	}
	line := make([]byte, 0, maxOKBytes)
	for len(line) == 0 || line[len(line)-1] != '\n' {
		if len(line) == maxOKBytes {
			return errors.New("the daemon's answer has no end")
		}
		if _, err := io.ReadFull(daemon, line[len(line):len(line)+1]); err != nil {
			return err
		}
		line = line[:len(line)+1]
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return fmt.Errorf("the daemon answers %q", line)
	}
	return nil
}
