package kvmprobe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"unsafe"
)

// machine is a VM of one processor with guestCode in its memory.
type machine struct {
	vcpu uintptr
	// run is struct kvm_run, which KVM fills at each exit.
	run []byte
}

// Offsets in struct kvm_run, linux/kvm.h.
const (
	runExitReason   = 8
	runIODirection  = 32
	runIOSize       = 33
	runIOPort       = 34
	runIODataOffset = 40
	runErrorCode    = 32
)

func newMachine(kvm uintptr) (*machine, error) {
	vm, err := ioctl(kvm, kvmCreateVM, 0)
	if err != nil {
		return nil, fmt.Errorf("no VM: %w", err)
	}
	memory, err := syscall.Mmap(-1, 0, memoryBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("no memory: %w", err)
	}
	layOut(memory)
	region := memoryRegion{size: memoryBytes, userspaceAddress: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := ioctl(vm, kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return nil, fmt.Errorf("no memory for the VM: %w", err)
	}
	vcpu, err := ioctl(vm, kvmCreateVCPU, 0)
	if err != nil {
		return nil, fmt.Errorf("no processor: %w", err)
	}
	if err := prepareProcessor(kvm, vcpu); err != nil {
		return nil, err
	}
	runBytes, err := ioctl(kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return nil, fmt.Errorf("no size of kvm_run: %w", err)
	}
	run, err := syscall.Mmap(int(vcpu), 0, int(runBytes), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("no kvm_run: %w", err)
	}
	return &machine{vcpu: vcpu, run: run}, nil
}

// layOut writes page tables, descriptor tables and code.
func layOut(memory []byte) {
	const presentWritable, largePage = 0x3, 0x80
	put := func(at int, value uint64) { binary.LittleEndian.PutUint64(memory[at:], value) }
	put(tablesAt, tablesAt+0x1000|presentWritable)
	put(tablesAt+0x1000, tablesAt+0x2000|presentWritable)
	put(tablesAt+0x2000, presentWritable|largePage)
	put(gdtAt+codeSegment, 0x00af9b000000ffff)
	put(gdtAt+dataSegment, 0x00cf93000000ffff)
	// An interrupt gate: the handler's address is below 64 KiB, so that only its lowest part is not zero.
	const presentInterruptGate = 0x8e
	put(idtAt+breakpoint*16, handlerAt|codeSegment<<16|presentInterruptGate<<40)
	copy(memory[codeAt:], guestCode)
	copy(memory[handlerAt:], handlerCode)
}

// prepareProcessor gives the processor every feature that KVM has, and sets it into 64-bit mode at codeAt.
func prepareProcessor(kvm, vcpu uintptr) error {
	features := cpuid{count: maxCPUIDEntries}
	if _, err := ioctl(kvm, kvmGetSupportedCPUID, uintptr(unsafe.Pointer(&features))); err != nil {
		return fmt.Errorf("no list of processor features: %w", err)
	}
	if _, err := ioctl(vcpu, kvmSetCPUID2, uintptr(unsafe.Pointer(&features))); err != nil {
		return fmt.Errorf("processor features refused: %w", err)
	}
	var special specialRegisters
	if _, err := ioctl(vcpu, kvmGetSregs, uintptr(unsafe.Pointer(&special))); err != nil {
		return fmt.Errorf("no special registers: %w", err)
	}
	special.enter64Bit()
	if _, err := ioctl(vcpu, kvmSetSregs, uintptr(unsafe.Pointer(&special))); err != nil {
		return fmt.Errorf("64-bit mode refused: %w", err)
	}
	const flagsAlwaysSet = 0x2
	general := generalRegisters{rsp: stackTop, rip: codeAt, rflags: flagsAlwaysSet}
	if _, err := ioctl(vcpu, kvmSetRegs, uintptr(unsafe.Pointer(&general))); err != nil {
		return fmt.Errorf("registers refused: %w", err)
	}
	return nil
}

// nextReport runs the guest to its next write to reportPort.
func (m *machine) nextReport() (uint32, error) {
	if err := m.runTo(exitIO); err != nil {
		return 0, err
	}
	port := binary.LittleEndian.Uint16(m.run[runIOPort:])
	if m.run[runIODirection] != ioOut || m.run[runIOSize] != 4 || port != reportPort {
		return 0, fmt.Errorf("unexpected access to port %#x", port)
	}
	data := binary.LittleEndian.Uint64(m.run[runIODataOffset:])
	if data > uint64(len(m.run)-4) {
		return 0, errors.New("port data outside kvm_run")
	}
	return binary.LittleEndian.Uint32(m.run[data:]), nil
}

func (m *machine) runToHalt() error { return m.runTo(exitHalt) }

func (m *machine) runTo(wanted uint32) error {
	for {
		_, err := ioctl(m.vcpu, kvmRun, 0)
		// The Go runtime's own signals interrupt the guest.
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil {
			return fmt.Errorf("KVM_RUN: %w", err)
		}
		reason := binary.LittleEndian.Uint32(m.run[runExitReason:])
		switch reason {
		case wanted:
			return nil
		case exitInternalError:
			return fmt.Errorf("KVM internal error %d", binary.LittleEndian.Uint32(m.run[runErrorCode:]))
		default:
			return fmt.Errorf("exit reason %d instead of %d", reason, wanted)
		}
	}
}
