package qemustate

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// stream is one under construction.
type stream struct{ bytes.Buffer }

func (s *stream) u8(value byte) *stream { s.WriteByte(value); return s }
func (s *stream) u32(value uint32) *stream {
	_ = binary.Write(s, binary.BigEndian, value)
	return s
}
func (s *stream) u64(value uint64) *stream {
	_ = binary.Write(s, binary.BigEndian, value)
	return s
}
func (s *stream) text(value string) *stream { s.WriteString(value); return s }
func (s *stream) name(value string) *stream { return s.u8(byte(len(value))).text(value) }
func (s *stream) footer() *stream           { return s.u8(sectionFooter).u32(2) }
func (s *stream) header() *stream {
	return s.u32(magic).u32(version).u8(configuration).u32(6).text("pc-q35")
}
func (s *stream) begin() *stream {
	return s.header().u8(sectionStart).u32(2).name("ram").u32(0).u32(ramVersion)
}
func (s *stream) sizes() *stream {
	return s.u64(memorySize + pageBytes | flagSizes).name(MemoryBlock).u64(memorySize).name("pc.bios").u64(pageBytes)
}
func (s *stream) start() *stream { return s.begin().sizes().u64(flagEnd).footer() }
func (s *stream) page(fill string) *stream {
	return s.text(strings.Repeat(fill, pageBytes))
}

const memorySize = 4 * pageBytes

// split gives what came out of it.
func split(t *testing.T, from []byte) (memory, devices []byte, data *Memory, err error) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	data, err = NewMemory(file, memorySize)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	deviceBytes, err := Split(bytes.NewReader(from), data, &out)
	if err == nil && deviceBytes != int64(out.Len()) {
		t.Errorf("%d bytes of devices, said to be %d", out.Len(), deviceBytes)
	}
	memory, readErr := os.ReadFile(file.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	return memory, out.Bytes(), data, err
}

func TestPagesGoToTheMemoryAndAllElseToTheDevices(t *testing.T) {
	var from, want stream
	from.start()
	from.u8(sectionPart).u32(2)
	from.u64(flagPage).name(MemoryBlock).page("a")
	from.u64(pageBytes | flagPage | flagContinue).page("b")
	from.u64(2*pageBytes | flagZero | flagContinue).u8(0)
	from.u64(flagPage).name("pc.bios").page("r")
	from.u64(3*pageBytes | flagPage).name(MemoryBlock).page("\x00")
	from.u64(flagEnd).footer()
	from.u8(sectionEnd).u32(2)
	from.u64(flagZero | flagContinue).u8(0) // what was data
	from.u64(flagZero).name("pc.bios").u8(0)
	from.u64(flagEnd).footer()
	from.u8(sectionFull).text("the devices, of no known length").u8(0)

	want.start()
	want.u8(sectionPart).u32(2)
	want.u64(flagPage).name("pc.bios").page("r")
	want.u64(flagEnd).footer()
	want.u8(sectionEnd).u32(2)
	want.u64(flagZero).name("pc.bios").u8(0)
	want.u64(flagEnd).footer()
	want.u8(sectionFull).text("the devices, of no known length").u8(0)

	memory, devices, data, err := split(t, from.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(devices, want.Bytes()) {
		t.Errorf("devices are\n%q, want\n%q", devices, want.Bytes())
	}
	var wantMemory stream
	wantMemory.page("\x00").page("b").page("\x00").page("\x00")
	if !bytes.Equal(memory, wantMemory.Bytes()) {
		t.Error("the memory is another")
	}
	if data.pages != 3 { // two of data, and one of zeros over data
		t.Errorf("%d pages were written", data.pages)
	}
}

func TestWhatIsNotUnderstoodIsRefused(t *testing.T) {
	records := func(make func(s *stream)) []byte {
		var s stream
		s.start().u8(sectionPart).u32(2)
		make(&s)
		s.u64(flagEnd).footer().u8(sectionEnd).u32(2).u64(flagEnd).footer().u8(sectionFull)
		return s.Bytes()
	}
	sizes := func(make func(s *stream)) []byte {
		var s stream
		make(s.begin())
		s.u64(flagEnd).footer().u8(sectionEnd).u32(2).u64(flagEnd).footer().u8(sectionFull)
		return s.Bytes()
	}
	whole := func(make func(s *stream)) []byte {
		var s stream
		make(&s)
		return s.Bytes()
	}
	cases := map[string]struct {
		from []byte
		want string
	}{
		"no stream":         {whole(func(s *stream) { s.u32(0x7f454c46).u32(3) }), "begins with 0x7f454c46"},
		"another version":   {whole(func(s *stream) { s.u32(magic).u32(4) }), "version 4"},
		"nothing":           {nil, "too early"},
		"a long machine":    {whole(func(s *stream) { s.u32(magic).u32(3).u8(configuration).u32(1 << 30) }), "1073741824 bytes"},
		"a capability":      {whole(func(s *stream) { s.header().u8(subsection) }), "x-ignore-shared"},
		"two configs":       {whole(func(s *stream) { s.header().u8(configuration) }), "second configuration"},
		"a command":         {whole(func(s *stream) { s.header().u8(command) }), "return-path"},
		"an unknown kind":   {whole(func(s *stream) { s.header().u8(0x55) }), "unknown kind 0x55"},
		"a device first":    {whole(func(s *stream) { s.header().u8(sectionFull) }), "a device before"},
		"another iterative": {whole(func(s *stream) { s.header().u8(sectionStart).u32(1).name("dirty-bitmap") }), `"dirty-bitmap"`},
		"two of them":       {whole(func(s *stream) { s.start().u8(sectionStart) }), "second section"},
		"part of another":   {whole(func(s *stream) { s.start().u8(sectionPart).u32(3) }), "section 3"},
		"part of none":      {whole(func(s *stream) { s.header().u8(sectionPart).u32(2) }), "before the memory's end"},
		"another ram":       {whole(func(s *stream) { s.header().u8(sectionStart).u32(2).name("ram").u32(0).u32(5) }), "version 5"},
		"no end":            {whole(func(s *stream) { s.start() }), "too early"},
		"no devices":        {whole(func(s *stream) { s.start().u8(sectionEnd).u32(2).u64(flagEnd).footer() }), "too early"},
		"an end at once":    {whole(func(s *stream) { s.start().u8(sectionEnd).u32(2).u64(flagEnd).footer().u8(0) }), "behind the memory"},
		"no footer":         {whole(func(s *stream) { s.begin().sizes().u64(flagEnd).u8(sectionPart).u32(2) }), "no footer"},
		"another's footer":  {whole(func(s *stream) { s.begin().sizes().u64(flagEnd).u8(sectionFooter).u32(3) }), "no footer"},
		"xbzrle":            {records(func(s *stream) { s.u64(0x40) }), "xbzrle"},
		"multifd":           {records(func(s *stream) { s.u64(0x200) }), "multifd"},
		"an unknown flag":   {records(func(s *stream) { s.u64(0x800) }), "flags 0x800"},
		"two flags":         {records(func(s *stream) { s.u64(flagPage | flagZero).name(MemoryBlock) }), "flags 0xa"},
		"sizes again":       {records(func(s *stream) { s.sizes() }), "twice"},
		"a page of none":    {records(func(s *stream) { s.u64(flagPage | flagContinue).page("a") }), `block ""`},
		"an unknown block":  {records(func(s *stream) { s.u64(flagPage).name("ram1").page("a") }), `"ram1"`},
		"behind the end":    {records(func(s *stream) { s.u64(memorySize | flagPage).name(MemoryBlock).page("a") }), "at 0x4000"},
		"far behind":        {records(func(s *stream) { s.u64(1<<63 | flagZero).name(MemoryBlock).u8(0) }), "0x8000000000000000"},
		"behind a rom":      {records(func(s *stream) { s.u64(pageBytes | flagPage).name("pc.bios").page("a") }), "at 0x1000"},
		"a filled page":     {records(func(s *stream) { s.u64(flagZero).name(MemoryBlock).u8(7) }), "0x7"},
		"no sizes":          {sizes(func(*stream) {}), "blocks first"},
		"a page first":      {sizes(func(s *stream) { s.u64(flagPage).name(MemoryBlock).page("a") }), "ram0"},
		"less memory":       {sizes(func(s *stream) { s.u64(pageBytes | flagSizes).name(MemoryBlock).u64(pageBytes) }), "4096 bytes of memory, the machine 16384"},
		"no memory":         {sizes(func(s *stream) { s.u64(pageBytes | flagSizes).name("rom").u64(pageBytes) }), `no memory block "ram0"`},
		"more than all":     {sizes(func(s *stream) { s.u64(pageBytes | flagSizes).name(MemoryBlock).u64(memorySize) }), "16384 bytes of 4096"},
		"half a page":       {sizes(func(s *stream) { s.u64(pageBytes | flagSizes).name(MemoryBlock).u64(100) }), "100 bytes"},
		"a block twice":     {sizes(func(s *stream) { s.u64(8*pageBytes | flagSizes).name("a").u64(pageBytes).name("a").u64(pageBytes) }), `wrong at "a"`},
		"a block unnamed":   {sizes(func(s *stream) { s.u64(8*pageBytes | flagSizes).name("").u64(pageBytes) }), `wrong at ""`},
	}
	for name, each := range cases {
		_, _, _, err := split(t, each.from)
		if err == nil || !strings.Contains(err.Error(), each.want) {
			t.Errorf("%s: %v, want something of %s", name, err, each.want)
		}
	}
}

func TestAStreamWithoutEndIsRefused(t *testing.T) {
	var s stream
	s.start().u8(sectionPart).u32(2)
	for i := 0; i < 2*(2*memorySize+maxDevicesBytes)/pageBytes; i++ {
		s.u64(flagPage).name(MemoryBlock).page("a")
	}
	if _, _, _, err := split(t, s.Bytes()); err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("pages without end: %v", err)
	}
	s.Reset()
	s.start().u8(sectionEnd).u32(2).u64(flagEnd).footer().u8(sectionFull)
	s.Write(make([]byte, maxDevicesBytes))
	if _, _, _, err := split(t, s.Bytes()); err == nil || !strings.Contains(err.Error(), "more than 67108864 bytes") {
		t.Errorf("devices without end: %v", err)
	}
}

func TestEveryCutIsFoundOut(t *testing.T) {
	var s stream
	s.start().u8(sectionEnd).u32(2).u64(flagPage).name(MemoryBlock).page("a").u64(flagEnd).footer()
	for end := 0; end < s.Len(); end += 7 {
		if _, _, _, err := split(t, s.Bytes()[:end]); err == nil || !strings.Contains(err.Error(), "too early") {
			t.Errorf("cut at %d: %v", end, err)
		}
	}
}

func TestTheMemoryIsSparse(t *testing.T) {
	const size = 64 << 20
	file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	memory, err := NewMemory(file, size)
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte{1}, pageBytes)
	for offset := int64(0); offset < size; offset += pageBytes {
		if offset%(1<<20) == 0 {
			err = memory.Page(offset, page)
		} else {
			err = memory.Zero(offset)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := memory.Flush(); err != nil {
		t.Fatal(err)
	}
	if blocks := blocksOf(t, file); blocks*512 > 64*pageBytes*2 {
		t.Errorf("64 pages take %d bytes", blocks*512)
	}
}
