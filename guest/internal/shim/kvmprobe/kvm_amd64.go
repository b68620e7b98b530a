package kvmprobe

import "syscall"

// What is used of linux/kvm.h and asm/kvm.h for x86-64.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmGetSupportedCPUID   = 0xc008ae05
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmSetCPUID2           = 0x4008ae90

	// kvmAPIVersion has been the same since Linux 2.6.22.
	kvmAPIVersion = 12

	exitIO            = 2
	exitHalt          = 5
	exitInternalError = 17
	ioOut             = 1
)

// memoryRegion is struct kvm_userspace_memory_region.
type memoryRegion struct {
	slot, flags            uint32
	guestAddress           uint64
	size, userspaceAddress uint64
}

// maxCPUIDEntries is KVM_MAX_CPUID_ENTRIES.
const maxCPUIDEntries = 256

// cpuid is struct kvm_cpuid2.
type cpuid struct {
	count, _ uint32
	entries  [maxCPUIDEntries][40]byte
}

// generalRegisters is struct kvm_regs.
type generalRegisters struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

// segment is struct kvm_segment.
type segment struct {
	base                                              uint64
	limit                                             uint32
	selector                                          uint16
	kind, present, dpl, db, s, l, g, avl, unusable, _ uint8
}

// descriptorTable is struct kvm_dtable.
type descriptorTable struct {
	base  uint64
	limit uint16
	_     [3]uint16
}

// specialRegisters is struct kvm_sregs.
type specialRegisters struct {
	cs, ds, es, fs, gs, ss, tr, ldt         segment
	gdt, idt                                descriptorTable
	cr0, cr2, cr3, cr4, cr8, efer, apicBase uint64
	interrupts                              [4]uint64
}

// enter64Bit sets what the processor has when a kernel has entered 64-bit mode, with SSE enabled.
func (s *specialRegisters) enter64Bit() {
	const (
		codeReadAccessed, dataWriteAccessed = 11, 3

		cr0Protected, cr0MonitorFPU, cr0ExtensionType, cr0NumericError, cr0Paging = 1, 1 << 1, 1 << 4, 1 << 5, 1 << 31
		cr4PhysicalExtension, cr4SSE, cr4SSEExceptions                            = 1 << 5, 1 << 9, 1 << 10
		eferLongMode, eferLongModeActive                                          = 1 << 8, 1 << 10
	)
	s.cs = segment{limit: 0xffffffff, selector: codeSegment, kind: codeReadAccessed, present: 1, s: 1, l: 1, g: 1}
	data := segment{limit: 0xffffffff, selector: dataSegment, kind: dataWriteAccessed, present: 1, s: 1, db: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	s.gdt = descriptorTable{base: gdtAt, limit: 3*8 - 1}
	s.idt = descriptorTable{base: idtAt, limit: 256*16 - 1}
	s.cr0 = cr0Protected | cr0MonitorFPU | cr0ExtensionType | cr0NumericError | cr0Paging
	s.cr3 = tablesAt
	s.cr4 = cr4PhysicalExtension | cr4SSE | cr4SSEExceptions
	s.efer = eferLongMode | eferLongModeActive
}

// ioctl takes pointers as uintptr(unsafe.Pointer(…)) in the call itself, like syscall.Syscall.
//
//go:uintptrescapes
func ioctl(fd, request, argument uintptr) (uintptr, error) {
	result, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, argument)
	if errno != 0 {
		return 0, errno
	}
	return result, nil
}
