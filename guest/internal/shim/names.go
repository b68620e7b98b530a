package shim

// The shim's own files in the VM's directory; others are named by the packages that write them, and config refuses to have any of
// them used for something else.
const (
	consoleIn  = "console.in"
	consoleOut = "console.out"
	vmmErr     = "vmm.err"
	vmmLog     = "vmm.log"
	vsockErr   = "vsock.err"
	vsockLog   = "vsock.log"
	lockFile   = "shim.lock"
	ownLog     = "shim.log"
)
