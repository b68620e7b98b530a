package qemustate

import (
	"bytes"
	"os"
)

// gatherBytes are written at once, where pages come one after the other.
const gatherBytes = 1 << 20

var zeroPage [pageBytes]byte

// Memory is a guest's memory on its way into a sparse file: pages of zeros are holes.
type Memory struct {
	file *os.File
	size int64
	// gathered lies at offset.
	gathered []byte
	offset   int64
	// isData has a bit for each page that the file has data of.
	isData []uint64
	pages  int64
}

// NewMemory gives an empty file the size of the memory.
func NewMemory(file *os.File, size int64) (*Memory, error) {
	if err := file.Truncate(size); err != nil {
		return nil, err
	}
	return &Memory{
		file: file, size: size, gathered: make([]byte, 0, gatherBytes), isData: make([]uint64, (size/pageBytes+63)/64),
	}, nil
}

// Page takes a page's content.
func (m *Memory) Page(offset int64, content []byte) error {
	if bytes.Equal(content, zeroPage[:]) {
		return m.Zero(offset)
	}
	return m.put(offset, content)
}

// Zero takes a page of zeros, which only has to be written where there was something else.
func (m *Memory) Zero(offset int64) error {
	page := offset / pageBytes
	if m.isData[page/64]&(1<<(page%64)) == 0 {
		return nil
	}
	return m.put(offset, zeroPage[:])
}

func (m *Memory) put(offset int64, content []byte) error {
	page := offset / pageBytes
	m.isData[page/64] |= 1 << (page % 64)
	m.pages++
	if offset != m.offset+int64(len(m.gathered)) || len(m.gathered) == cap(m.gathered) {
		if err := m.Flush(); err != nil {
			return err
		}
		m.offset = offset
	}
	m.gathered = append(m.gathered, content...)
	return nil
}

// Flush writes what was gathered.
func (m *Memory) Flush() error {
	_, err := m.file.WriteAt(m.gathered, m.offset)
	m.gathered = m.gathered[:0]
	return err
}
