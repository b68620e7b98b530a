package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"syscall"
	"unsafe"
)

// node is a path relative to the root and what lstat says of it.
type node struct {
	name string
	stat syscall.Stat_t
}

// findNodes lists the tree, sorted by the bytes of the paths, which is not the order of a walk: "a.b" comes before "a/b".
func findNodes(opts options) ([]node, error) {
	var found []node
	var visit func(name string) error
	visit = func(name string) error {
		if opts.skipped[name] {
			return nil
		}
		if opts.oneFileSystem && name != "." {
			isRoot, err := isMountPoint(join(opts.root, name))
			if err != nil {
				return err
			}
			if isRoot {
				opts.tellMountPoint(name)
				return nil
			}
		}
		each := node{name: name}
		if err := syscall.Lstat(join(opts.root, name), &each.stat); err != nil {
			return fmt.Errorf("cannot lstat %s: %w", name, err)
		}
		found = append(found, each)
		if each.stat.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			return nil
		}
		children, err := os.ReadDir(join(opts.root, name))
		if err != nil {
			return err
		}
		for _, child := range children {
			if err := visit(childName(name, child.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	if err := visit("."); err != nil {
		return nil, err
	}
	sort.Slice(found, func(i, j int) bool { return found[i].name < found[j].name })
	return found, nil
}

func childName(folder, name string) string {
	if folder == "." {
		return name
	}
	return folder + "/" + name
}

// join does not clean: a name is taken as it is.
func join(root, name string) string { return strings.TrimRight(root, "/") + "/" + name }

// statx is not in package syscall; values of Linux, include/uapi/linux/stat.h and arch/x86/entry/syscalls/syscall_64.tbl.
const (
	sysStatx           = 332
	atFdcwd            = -100
	atSymlinkNofollow  = 0x100
	statxAttrMountRoot = 0x2000 // since Linux 5.8
)

// statxResult is struct statx as far as we read it.
type statxResult struct {
	_              [8]byte
	attributes     uint64
	_              [40]byte
	attributesMask uint64
	_              [192]byte
}

// isMountPoint asks the kernel for it. Comparing st_dev would not do: in an overlayfs, files may have another than folders.
func isMountPoint(name string) (bool, error) {
	pointer, err := syscall.BytePtrFromString(name)
	if err != nil {
		return false, err
	}
	var result statxResult
	folder := atFdcwd
	_, _, errno := syscall.Syscall6(sysStatx, uintptr(folder), uintptr(unsafe.Pointer(pointer)), atSymlinkNofollow, 0,
		uintptr(unsafe.Pointer(&result)), 0)
	if errno != 0 {
		return false, fmt.Errorf("cannot statx %s: %w", name, errno)
	}
	if result.attributesMask&statxAttrMountRoot == 0 {
		return false, fmt.Errorf("cannot tell whether %s is a mount point: the kernel is older than 5.8", name)
	}
	return result.attributes&statxAttrMountRoot != 0, nil
}
