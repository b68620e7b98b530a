package kvmprobe

import (
	"fmt"
	"os"
)

// The guest starts in 64-bit mode, as a kernel soon does, with the first 2 MiB mapped to itself.
const (
	memoryBytes = 2 << 20
	tablesAt    = 0x1000 // page tables: three levels, a page each
	gdtAt       = 0x4000
	idtAt       = 0x5000
	codeAt      = 0x6000
	stackTop    = 0x9000
	handlerAt   = codeAt + 0x40
	breakpoint  = 3
	reportPort  = 0xb0
	codeSegment = 1 * 8
	dataSegment = 2 * 8
)

// guestCode reports by writing 32-bit values to reportPort, in the order of expectations.
var guestCode = []byte{
	0xba, reportPort, 0, 0, 0, // mov    $reportPort, %edx
	0xb8, 0x64, 0x6e, 0x61, 0x42, // mov    $0x42616e64, %eax
	0xef,                 // out    %eax, (%dx)
	0xb8, 21, 0x00, 0, 0, // mov    $21, %eax
	0x66, 0x0f, 0x6e, 0xc0, // movd   %eax, %xmm0
	0x66, 0x0f, 0xfe, 0xc0, // paddd  %xmm0, %xmm0
	0x66, 0x0f, 0x7e, 0xc0, // movd   %xmm0, %eax
	0xef,                         // out    %eax, (%dx)
	0xcc,                         // int3
	0xb9, 0x80, 0x96, 0x98, 0x00, // mov    $10000000, %ecx
	0xff, 0xc9, // 1: dec %ecx
	0x75, 0xfc, // jnz    1b
	0x89, 0xc8, // mov    %ecx, %eax
	0xef, // out    %eax, (%dx)
	0xf4, // hlt
}

// handlerCode serves the breakpoint.
var handlerCode = []byte{
	0xb8, 0x33, 0, 0, 0, // mov    $0x33, %eax
	0xef,       // out    %eax, (%dx)
	0x48, 0xcf, // iretq
}

// expectations are the guest's reports, with what each one tries.
var expectations = []struct {
	value uint32
	tries string
}{
	{0x42616e64, "an instruction"},
	{42, "an SSE instruction, which a KVM that emulates guests instead of running them does not know"},
	{0x33, "an exception and the return from it"},
	{0, "a loop"},
}

func tryGuest() Result {
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return Result{Reason: fmt.Sprintf("KVM cannot be used: %v.", err)}
	}
	defer device.Close() // a process that ends gives all of it back
	version, err := ioctl(device.Fd(), kvmGetAPIVersion, 0)
	if err != nil {
		return Result{Reason: fmt.Sprintf("/dev/kvm is no KVM: %v.", err)}
	}
	result := Result{APIVersion: int(version)}
	if version != kvmAPIVersion {
		result.Reason = fmt.Sprintf("/dev/kvm has API version %d, not %d.", int(version), kvmAPIVersion)
		return result
	}
	if err := runGuest(device.Fd()); err != nil {
		result.Reason = fmt.Sprintf("KVM cannot run ordinary guests: %v.", err)
		return result
	}
	result.Usable, result.Reason = true, "A guest ran on /dev/kvm."
	return result
}

func runGuest(kvm uintptr) error {
	guest, err := newMachine(kvm)
	if err != nil {
		return err
	}
	for _, expected := range expectations {
		value, err := guest.nextReport()
		if err != nil {
			return fmt.Errorf("it fails at %s (%w)", expected.tries, err)
		}
		if value != expected.value {
			return fmt.Errorf("%s gave %#x, not %#x", expected.tries, value, expected.value)
		}
	}
	return guest.runToHalt()
}
