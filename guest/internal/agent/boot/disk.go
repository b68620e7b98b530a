package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// imageDisk is how an image lies on its disk.
type imageDisk struct {
	fileSystem string
	folder     string // of the mounted disk
}

var (
	// squashfsDisk is what the host makes of an image's layers. Its builder can set the attributes of a folder, not those of the
	// disk's own root: so the image is in a folder.
	squashfsDisk = imageDisk{"squashfs", lowerFolder + "/rootfs"}
	// ext4Disk is a root file system of the earlier project, which was imported: all of it is the image.
	ext4Disk = imageDisk{"ext4", lowerFolder}
)

// Magics and where they are: fs/squashfs/squashfs_fs.h; Documentation/filesystems/ext4, s_magic of the superblock at 1024.
const (
	squashfsMagic   = "hsqs"
	squashfsMagicAt = 0
	ext4Magic       = "\x53\xef"
	ext4MagicAt     = 0x438
)

// identifyDisk tells by the magic what a disk holds. Nothing else of it is read here: the kernel looks at the rest.
func identifyDisk(path string) (imageDisk, error) {
	disk, err := os.Open(path)
	if err != nil {
		return imageDisk{}, fmt.Errorf("cannot open the image's disk: %w", err)
	}
	defer disk.Close() // read only: its error has nothing to tell
	for _, known := range []struct {
		magic string
		at    int64
		disk  imageDisk
	}{{squashfsMagic, squashfsMagicAt, squashfsDisk}, {ext4Magic, ext4MagicAt, ext4Disk}} {
		found := make([]byte, len(known.magic))
		if _, err := disk.ReadAt(found, known.at); err != nil && !errors.Is(err, io.EOF) {
			return imageDisk{}, fmt.Errorf("cannot read the image's disk: %w", err)
		}
		if string(found) == known.magic {
			return known.disk, nil
		}
	}
	return imageDisk{}, fmt.Errorf("the image's disk %s holds neither a squashfs nor an ext4", path)
}

// mountImage mounts the image's disk and returns the folder in which the image is.
//
// An ext4 may be that of a VM that was killed: its journal is to be replayed, or files would be missing or torn. Mounted read-only
// the kernel does so all the same, and sets right what was open and deleted, where the disk itself may be written: the host gives
// such a disk to its one sandbox as writable. After that nobody writes to it.
func mountImage(device string) (string, error) {
	disk, err := identifyDisk(device)
	if err != nil {
		return "", err
	}
	return disk.folder, mount{device, lowerFolder, disk.fileSystem, syscall.MS_RDONLY, ""}.do()
}
