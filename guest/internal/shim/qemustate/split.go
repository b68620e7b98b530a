// Package qemustate takes QEMU's migration stream apart: the guest's memory into a sparse file that can be mapped, the rest into a
// file that QEMU loads beside that mapping.
//
// A stream (version 3) is a header, a configuration, and sections. The section "ram" comes in several parts: a list of the blocks of
// memory, then pages, each with the block's name and its offset. Pages that are left out keep, when the stream is loaded, what the
// block's memory holds already: so the devices' file is the stream without the pages of the guest's memory, and the memory is mapped.
// The sections behind it have no lengths, and are copied as they are.
//
// The VMM may have been taken over by its guest: what is not understood is refused, and everything is bounded. What it says of its
// devices is its own guest's affair, and is read by nobody but another VMM.
//
// See migration/savevm.c and migration/ram.c of QEMU 7.2 to 10.
package qemustate

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	magic   = 0x5145564d // "QEVM"
	version = 3
	// ramVersion is that of the section "ram".
	ramVersion = 4
)

// What a section begins with.
const (
	sectionStart  = 0x01
	sectionPart   = 0x02
	sectionEnd    = 0x03
	sectionFull   = 0x04
	subsection    = 0x05
	configuration = 0x07
	command       = 0x08
	sectionFooter = 0x7e
)

// Flags of a record of the section "ram", in the low bits of an offset.
const (
	flagZero     = 0x02
	flagSizes    = 0x04
	flagPage     = 0x08
	flagEnd      = 0x10
	flagContinue = 0x20
	flagsMask    = pageBytes - 1
)

// features are the records that only a QEMU with a capability switched on sends.
var features = map[uint64]string{
	0x40: "xbzrle", 0x80: "rdma", 0x100: "compress", 0x200: "multifd",
}

const (
	pageBytes = 4096
	// MemoryBlock is the guest's memory, by the id of the object that it is.
	MemoryBlock = "ram0"
	// maxDevicesBytes is far above devices and firmware, which have some 400 KiB.
	maxDevicesBytes = 64 << 20
	maxBlocks       = 256
	// maxMachineBytes is for a machine type's name.
	maxMachineBytes = 256
	// readAhead is read at once; a page comes with some bytes before it.
	readAhead = 1 << 20
)

// splitter is one stream on its way.
type splitter struct {
	from    *bufio.Reader
	devices *bounded
	memory  *Memory

	blocks map[string]uint64
	// ram is the number of the section, once it has begun.
	ram uint32
	// last is the block that a record without a name means.
	last string
	page [pageBytes]byte
}

// errCut is of a VMM that has given up, and tells the manager why.
var errCut = errors.New("QEMU's stream ends too early")

// Split reads a stream to its end. memoryBytes is what the machine has: a block of another size is refused.
func Split(from io.Reader, memory *Memory, devices io.Writer) (deviceBytes int64, err error) {
	// A machine that stands still sends each page once.
	limit := 2*memory.size + maxDevicesBytes
	out := &bounded{to: bufio.NewWriterSize(devices, readAhead), left: maxDevicesBytes}
	split := &splitter{
		from: bufio.NewReaderSize(&limited{from: from, left: limit}, readAhead), devices: out, memory: memory,
		blocks: map[string]uint64{},
	}
	if err := split.run(); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errCut
		}
		return 0, err
	}
	if err := memory.Flush(); err != nil {
		return 0, err
	}
	return maxDevicesBytes - out.left, out.to.Flush()
}

func (s *splitter) run() error {
	if err := s.header(); err != nil {
		return err
	}
	for isFirst := true; ; isFirst = false {
		kind, err := s.from.ReadByte()
		if err != nil {
			return err
		}
		if err := s.echo([]byte{kind}); err != nil {
			return err
		}
		ended, err := s.section(kind, isFirst)
		if err != nil {
			return err
		}
		if ended {
			return s.rest()
		}
	}
}

func (s *splitter) header() error {
	head, err := s.take(8)
	if err != nil {
		return err
	}
	if found := binary.BigEndian.Uint32(head); found != magic {
		return fmt.Errorf("QEMU's stream begins with %#x, which is none", found)
	}
	if found := binary.BigEndian.Uint32(head[4:]); found != version {
		return fmt.Errorf("QEMU's stream is of version %d, not %d", found, version)
	}
	return s.echo(head)
}

// section reads one; ended says that the memory has.
func (s *splitter) section(kind byte, isFirst bool) (ended bool, err error) {
	switch {
	case kind == configuration && isFirst:
		return false, s.configuration()
	case kind == sectionStart && len(s.blocks) == 0:
		if err := s.start(); err != nil {
			return false, err
		}
	case (kind == sectionPart || kind == sectionEnd) && len(s.blocks) > 0:
		id, err := s.number32()
		if err != nil {
			return false, err
		}
		if id != s.ram {
			return false, fmt.Errorf("QEMU's stream goes on with section %d, which has not begun", id)
		}
	case kind == command:
		return false, errors.New("QEMU sends commands to who loads the state: return-path or postcopy-ram is switched on")
	default:
		return false, fmt.Errorf("QEMU's stream has %s before the memory's end", nameOf(kind))
	}
	if err := s.records(kind == sectionStart); err != nil {
		return false, err
	}
	return kind == sectionEnd, s.footer()
}

func nameOf(kind byte) string {
	switch kind {
	case configuration:
		return "a second configuration"
	case sectionStart:
		return "a second section that comes in parts"
	case sectionFull:
		return "a device"
	}
	return fmt.Sprintf("a section of the unknown kind %#x", kind)
}

// configuration is the machine's type.
func (s *splitter) configuration() error {
	length, err := s.number32()
	if err != nil {
		return err
	}
	if length > maxMachineBytes {
		return fmt.Errorf("QEMU's machine type has %d bytes", length)
	}
	name, err := s.take(int(length))
	if err != nil {
		return err
	}
	if err := s.echo(name); err != nil {
		return err
	}
	next, err := s.from.Peek(1)
	if err == nil && next[0] == subsection {
		return errors.New("QEMU's stream needs a capability: x-ignore-shared, mapped-ram or x-validate-uuid is switched on")
	}
	return err
}

func (s *splitter) start() error {
	id, err := s.number32()
	if err != nil {
		return err
	}
	name, err := s.name()
	if err != nil {
		return err
	}
	if name != "ram" {
		return fmt.Errorf("QEMU's stream has a section %.40q, which this shim does not know", name)
	}
	instance, err := s.number32()
	if err != nil {
		return err
	}
	ram, err := s.number32()
	if err != nil {
		return err
	}
	if instance != 0 || ram != ramVersion {
		return fmt.Errorf("QEMU's section \"ram\" is of version %d (of %d), not %d", ram, instance, ramVersion)
	}
	s.ram = id
	return nil
}

// records reads those of one part.
func (s *splitter) records(isFirst bool) error {
	for wantsSizes := isFirst; ; wantsSizes = false {
		word, err := s.number()
		if err != nil {
			return err
		}
		offset, flags := word&^flagsMask, word&flagsMask
		switch flags {
		case flagSizes:
			if !wantsSizes {
				return errors.New("QEMU's stream lists the memory's blocks twice")
			}
			if err := s.echoRecord(word); err != nil {
				return err
			}
			err = s.sizes(offset)
		case flagZero, flagZero | flagContinue, flagPage, flagPage | flagContinue:
			err = s.record(offset, flags)
		case flagEnd:
			if len(s.blocks) > 0 {
				return s.echoRecord(word)
			}
		default:
			return unknownRecord(flags)
		}
		if err != nil {
			return err
		}
		if len(s.blocks) == 0 {
			return errors.New("QEMU's stream does not list the memory's blocks first")
		}
	}
}

func unknownRecord(flags uint64) error {
	for flag, feature := range features {
		if flags&flag != 0 {
			return fmt.Errorf("QEMU sends its memory in a way that this shim does not know: %s is switched on", feature)
		}
	}
	return fmt.Errorf("QEMU sends its memory in a way that this shim does not know: flags %#x", flags)
}

// sizes reads the list of the memory's blocks.
func (s *splitter) sizes(total uint64) error {
	for left := total; left > 0; {
		name, err := s.name()
		if err != nil {
			return err
		}
		size, err := s.number64()
		if err != nil {
			return err
		}
		if _, known := s.blocks[name]; known || name == "" || len(s.blocks) == maxBlocks {
			return fmt.Errorf("QEMU's list of memory blocks is wrong at %.40q", name)
		}
		if size == 0 || size > left || size%pageBytes != 0 {
			return fmt.Errorf("QEMU's memory block %.40q has %d bytes of %d", name, size, left)
		}
		s.blocks[name] = size
		left -= size
	}
	size, known := s.blocks[MemoryBlock]
	if !known {
		return fmt.Errorf("QEMU's stream has no memory block %q", MemoryBlock)
	}
	if size != uint64(s.memory.size) {
		return fmt.Errorf("QEMU's stream has %d bytes of memory, the machine %d", size, s.memory.size)
	}
	return nil
}

// record reads one page.
func (s *splitter) record(offset, flags uint64) error {
	if flags&flagContinue == 0 {
		length, err := s.from.ReadByte()
		if err != nil {
			return err
		}
		name, err := s.take(int(length))
		if err != nil {
			return err
		}
		s.last = string(name)
	}
	size, known := s.blocks[s.last]
	if !known || offset >= size {
		return fmt.Errorf("QEMU sends a page at %#x of memory block %.40q, which has %d bytes", offset, s.last, size)
	}
	isZero := flags&flagZero != 0
	content := s.page[:]
	if isZero {
		content = s.page[:1] // what the whole page is filled with
	}
	if _, err := io.ReadFull(s.from, content); err != nil {
		return err
	}
	if isZero && content[0] != 0 {
		return fmt.Errorf("QEMU sends a page that is filled with %#x", content[0])
	}
	if s.last != MemoryBlock {
		return s.echoPage(offset|flags&^flagContinue, content)
	}
	if isZero {
		return s.memory.Zero(int64(offset))
	}
	return s.memory.Page(int64(offset), content)
}

// echoPage writes a page with its block's name: the record before it may be left out.
func (s *splitter) echoPage(word uint64, content []byte) error {
	if err := s.echoRecord(word); err != nil {
		return err
	}
	if err := s.echo(append([]byte{byte(len(s.last))}, s.last...)); err != nil {
		return err
	}
	return s.echo(content)
}

func (s *splitter) footer() error {
	foot, err := s.take(5)
	if err != nil {
		return err
	}
	if foot[0] != sectionFooter || binary.BigEndian.Uint32(foot[1:]) != s.ram {
		return errors.New("QEMU's stream has no footer behind a part of the memory")
	}
	return s.echo(foot)
}

// rest copies the devices, of which there are some.
func (s *splitter) rest() error {
	next, err := s.from.Peek(1)
	if err != nil {
		return err
	}
	if next[0] != sectionFull && next[0] != command {
		return fmt.Errorf("QEMU's stream has %s behind the memory", nameOf(next[0]))
	}
	_, err = io.Copy(s.devices, s.from)
	return err
}

// take returns bytes that are good until the next reading.
func (s *splitter) take(length int) ([]byte, error) {
	taken := s.page[:length]
	_, err := io.ReadFull(s.from, taken)
	return taken, err
}

// number reads one that is not echoed yet.
func (s *splitter) number() (uint64, error) {
	bytes, err := s.take(8)
	return binary.BigEndian.Uint64(bytes), err
}

// number64, number32 and name echo what they read.
func (s *splitter) number64() (uint64, error) {
	value, err := s.number()
	if err != nil {
		return 0, err
	}
	return value, s.echoRecord(value)
}

func (s *splitter) number32() (uint32, error) {
	bytes, err := s.take(4)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(bytes), s.echo(bytes)
}

func (s *splitter) name() (string, error) {
	length, err := s.from.ReadByte()
	if err != nil {
		return "", err
	}
	name, err := s.take(int(length))
	if err != nil {
		return "", err
	}
	text := string(name)
	return text, s.echo(append([]byte{length}, text...))
}

func (s *splitter) echoRecord(word uint64) error {
	var bytes [8]byte
	binary.BigEndian.PutUint64(bytes[:], word)
	return s.echo(bytes[:])
}

func (s *splitter) echo(bytes []byte) error {
	_, err := s.devices.Write(bytes)
	return err
}

// bounded writes so much and no more.
type bounded struct {
	to   *bufio.Writer
	left int64
}

func (b *bounded) Write(bytes []byte) (int, error) {
	if int64(len(bytes)) > b.left {
		return 0, fmt.Errorf("the state of QEMU's devices has more than %d bytes", maxDevicesBytes)
	}
	b.left -= int64(len(bytes))
	return b.to.Write(bytes)
}

// limited reads so much and no more.
type limited struct {
	from io.Reader
	left int64
}

func (l *limited) Read(bytes []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("QEMU's stream does not end")
	}
	if int64(len(bytes)) > l.left {
		bytes = bytes[:l.left]
	}
	n, err := l.from.Read(bytes)
	l.left -= int64(n)
	return n, err
}
