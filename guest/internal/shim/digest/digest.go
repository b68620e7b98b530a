// Package digest sums up large sparse files, such as a machine's memory and disks, without reading their holes.
package digest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// seekData is lseek(2)'s SEEK_DATA, which package syscall does not have.
const seekData = 3

// blockBytes is what is left out at once where it is all zeros: so it makes no difference which of a file's zeros are holes.
const blockBytes = 64 << 10

// statBytes is what stat(2) counts blocks in.
const statBytes = 512

// Sum is what is told of a file.
type Sum struct {
	SizeBytes      int64 `json:"sizeBytes"`
	AllocatedBytes int64 `json:"allocatedBytes"`
	// Digest is a SHA-256, in hex, of the size, and of each block that is not all zeros behind its number; both are 64 bits, big-endian.
	Digest string `json:"digest"`
}

// Print writes a line of JSON for each file, in their order.
func Print(out io.Writer, files []string) error {
	encoder := json.NewEncoder(out)
	for _, file := range files {
		sum, err := Of(file)
		if err != nil {
			return err
		}
		if err := encoder.Encode(sum); err != nil {
			return err
		}
	}
	return nil
}

// Of reads a file to its end.
func Of(path string) (Sum, error) {
	// What a link leads to is not meant.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return Sum{}, err
	}
	defer file.Close() // it was only read
	info, err := file.Stat()
	if err != nil {
		return Sum{}, err
	}
	status, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return Sum{}, fmt.Errorf("%s is no file", path)
	}
	size := info.Size()
	hash := sha256.New()
	if err := add(hash, uint64(size)); err != nil {
		return Sum{}, err
	}
	zeros := make([]byte, blockBytes)
	block := make([]byte, blockBytes)
	for offset := int64(0); offset < size; {
		from, err := nextData(file, offset, size)
		if err != nil {
			return Sum{}, err
		}
		if from == size {
			break
		}
		number := from / blockBytes
		piece := block
		if left := size - number*blockBytes; left < blockBytes {
			piece = block[:left]
		}
		if _, err := file.ReadAt(piece, number*blockBytes); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF // it has become shorter meanwhile
			}
			return Sum{}, fmt.Errorf("%s: %w", path, err)
		}
		offset = (number + 1) * blockBytes
		if bytes.Equal(piece, zeros[:len(piece)]) {
			continue
		}
		if err := add(hash, uint64(number)); err != nil {
			return Sum{}, err
		}
		if _, err := hash.Write(piece); err != nil {
			return Sum{}, err
		}
	}
	return Sum{SizeBytes: size, AllocatedBytes: status.Blocks * statBytes, Digest: hex.EncodeToString(hash.Sum(nil))}, nil
}

func add(to io.Writer, number uint64) error {
	var word [8]byte
	binary.BigEndian.PutUint64(word[:], number)
	_, err := to.Write(word[:])
	return err
}

// nextData is the first byte at or behind an offset that is not in a hole; the size when there is none.
func nextData(file *os.File, offset, size int64) (int64, error) {
	from, err := file.Seek(offset, seekData)
	if errors.Is(err, syscall.ENXIO) {
		return size, nil
	}
	if errors.Is(err, syscall.EINVAL) {
		return offset, nil // a file system that knows no holes
	}
	return from, err
}
