// Package overlay lays a sparse file over another: what a VMM has saved of a memory's changes over the memory as it was before.
package overlay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Of lseek(2): where data begins, and where it ends; package syscall does not have them.
const (
	seekData = 3
	seekHole = 4
)

// copyBytes is copied at once.
const copyBytes = 1 << 20

// Apply writes all that changes holds of data over base, in place. Both have the same size: otherwise nothing is written.
func Apply(base, changes string) (err error) {
	// What a link leads to is not meant.
	under, err := os.OpenFile(base, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := under.Close(); err == nil {
			err = closeErr
		}
	}()
	over, err := os.OpenFile(changes, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer over.Close() // it was only read
	size, err := sameSize(under, over)
	if err != nil {
		return err
	}
	for offset := int64(0); offset < size; {
		from, to, err := nextData(over, offset, size)
		if err != nil || from == size {
			return err
		}
		if err := copyRange(under, over, from, to); err != nil {
			return err
		}
		offset = to
	}
	return nil
}

func sameSize(under, over *os.File) (int64, error) {
	one, err := under.Stat()
	if err != nil {
		return 0, err
	}
	other, err := over.Stat()
	if err != nil {
		return 0, err
	}
	if !one.Mode().IsRegular() || !other.Mode().IsRegular() || one.Size() != other.Size() {
		return 0, fmt.Errorf("%s and %s are not two files of one size", under.Name(), over.Name())
	}
	return one.Size(), nil
}

// nextData returns where data begins at or after an offset, and where it ends; twice the size when there is none.
func nextData(file *os.File, offset, size int64) (from, to int64, err error) {
	from, err = file.Seek(offset, seekData)
	if errors.Is(err, syscall.ENXIO) {
		return size, size, nil
	}
	if err != nil {
		return 0, 0, err
	}
	to, err = file.Seek(from, seekHole)
	return from, to, err
}

// copyRange copies bytes to where they are from.
func copyRange(to, from *os.File, begin, end int64) error {
	buffer := make([]byte, copyBytes)
	for offset := begin; offset < end; {
		piece := buffer
		if left := end - offset; left < copyBytes {
			piece = buffer[:left]
		}
		n, err := from.ReadAt(piece, offset)
		if n == 0 {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF // it has become shorter meanwhile
			}
			return err
		}
		if _, err := to.WriteAt(piece[:n], offset); err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}
