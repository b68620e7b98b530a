// Package onefile lets a program have one file for reading that it opens for writing.
//
// QEMU 7.2 opens the file that a machine's memory is mapped from for writing, also where the mapping is private and nothing is ever
// written. A file that many machines are loaded from must not be theirs to write: one VMM that was taken over by its guest would
// change the memory of all others. So the launcher has the kernel ask us (seccomp(2), "user notification") when the program opens a
// file with O_RDWR and no other flag, which its disks never are. For that one path the shim opens the file for reading, and the
// program gets this descriptor for its own; for any other the kernel goes on by itself. After that nobody listens any more, and such
// an open fails with ENOSYS.
//
// The descriptor's number is fixed, since of it the program hears a lie more: QEMU gives back the memory of a page by punching a hole
// into the file, which would fail, and unmaps the page only when that has succeeded. So fallocate(2) on it does nothing, and says
// that it did. What the machine has written there is gone then, and what the file has shows again.
package onefile

import "errors"

// Descriptor is the file's number in the program: far above those of a VMM that has just been started, whose files are some twenty.
const Descriptor = 255

// ErrUnsupported is the error of a kernel that cannot.
var ErrUnsupported = errors.New("this kernel cannot give a VMM a file that it may only read: Linux 5.14 with seccomp is needed")
