package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"bandsox.dev/guest/internal/shim/procid"
)

// announceStarted prints the line the starter waits for.
func announceStarted(out io.Writer, vmm procid.ID) error {
	return json.NewEncoder(out).Encode(struct {
		Event string    `json:"event"`
		VMM   procid.ID `json:"vmm"`
	}{"started", vmm})
}

// announceFailed prints why there is no VM.
func announceFailed(out io.Writer, err error) error {
	code := codeShimFailed
	var known *failure
	if errors.As(err, &known) {
		code = known.code
	}
	return json.NewEncoder(out).Encode(struct {
		Event   string `json:"event"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}{"failed", code, err.Error()})
}

// leaveStarter lets go of the starter's descriptors 0 to 2, after which the starter reads the end of stdout and may go. What Go
// itself has to say, a crash above all, goes into the shim's log.
func leaveStarter(log *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close() // its copies stay
	for target, source := range []*os.File{null, null, log} {
		if err := syscall.Dup3(int(source.Fd()), target, 0); err != nil {
			return fmt.Errorf("descriptor %d: %w", target, err)
		}
	}
	return nil
}
