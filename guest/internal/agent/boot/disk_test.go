package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheDiskIsToldByItsMagic(t *testing.T) {
	at := func(offset int, magic string) []byte {
		disk := make([]byte, 2048)
		copy(disk[offset:], magic)
		return disk
	}
	both := at(0, "hsqs")
	copy(both[0x438:], "\x53\xef")
	for name, test := range map[string]struct {
		content []byte
		want    imageDisk
	}{
		"squashfs":                         {at(0, "hsqs"), imageDisk{"squashfs", "/lower/rootfs"}},
		"ext4":                             {at(0x438, "\x53\xef"), imageDisk{"ext4", "/lower"}},
		"squashfs with ext4's in its data": {both, imageDisk{"squashfs", "/lower/rootfs"}},
		"zeros":                            {at(0, ""), imageDisk{}},
		"the magic's bytes exchanged":      {at(0x438, "\xef\x53"), imageDisk{}},
		"squashfs of the other endianness": {at(0, "sqsh"), imageDisk{}},
		"ext4 cut in its magic":            {at(0x438, "\x53\xef")[:0x439], imageDisk{}},
		"nothing":                          {nil, imageDisk{}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(file, test.content, 0o600); err != nil {
				t.Fatal(err)
			}
			disk, err := identifyDisk(file)
			if disk != test.want {
				t.Errorf("%+v, not %+v", disk, test.want)
			}
			if test.want == (imageDisk{}) && (err == nil || !strings.Contains(err.Error(), "neither a squashfs nor an ext4")) {
				t.Errorf("it is refused with %v", err)
			}
		})
	}
}

func TestADiskThatIsNotThereIsAnError(t *testing.T) {
	if _, err := identifyDisk(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error")
	}
}
