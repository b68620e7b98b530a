package shim

import "fmt"

// Codes of the failed event.
const (
	codeConfigInvalid    = "config-invalid"
	codeAlreadyRunning   = "already-running"
	codeVMMStartFailed   = "vmm-start-failed"
	codeVsockStartFailed = "vsock-start-failed"
	// codeCIDInUse asks for another try with another CID.
	codeCIDInUse = "cid-in-use"
	// codeHostUnsupported is for what this host's kernel cannot do.
	codeHostUnsupported = "host-unsupported"
	codeVMMGone         = "vmm-gone"
	// codeShimFailed is for what the shim itself needs of the machine: its files, sockets and FIFOs.
	codeShimFailed = "shim-failed"
)

// failure is why a VM could not be started or taken over.
type failure struct {
	code  string
	cause error
}

func (f *failure) Error() string { return f.cause.Error() }
func (f *failure) Unwrap() error { return f.cause }

func fail(code, format string, arguments ...any) *failure {
	return &failure{code: code, cause: fmt.Errorf(format, arguments...)}
}
