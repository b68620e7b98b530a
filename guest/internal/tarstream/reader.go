package tarstream

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Reader reads a stream. It takes no byte more than it has understood from its source.
type Reader struct {
	in   io.Reader
	left int64 // of the entry's content
	pad  int64
}

// NewReader reads from in, which should be buffered.
func NewReader(in io.Reader) *Reader { return &Reader{in: in} }

// pending is what has been gathered about the entry that comes next.
type pending struct {
	records            map[string]string
	xattrs             map[string]string
	sparsePairs        []int64
	longPath, longLink string
	any                bool
}

// Next passes over what is left of an entry, and gives the next one. io.EOF: the stream is over.
func (r *Reader) Next() (*Entry, error) {
	if _, err := io.CopyN(io.Discard, r.in, r.left+r.pad); err != nil {
		return nil, cut(err)
	}
	r.left, r.pad = 0, 0
	p := pending{records: map[string]string{}}
	for {
		var header [block]byte
		_, err := io.ReadFull(r.in, header[:])
		if err == io.EOF && !p.any {
			return nil, io.EOF // without the two empty blocks at the end: some writers forget them
		}
		if err != nil {
			return nil, cut(err)
		}
		if header == [block]byte{} {
			if p.any {
				return nil, invalid("an extended header is followed by the end")
			}
			if _, err := io.ReadFull(r.in, header[:]); err != nil && err != io.EOF {
				return nil, cut(err)
			}
			if header != [block]byte{} {
				return nil, invalid("an empty block is followed by another header")
			}
			return nil, io.EOF
		}
		entry, err := r.take(header[:], &p)
		if entry != nil || err != nil {
			return entry, err
		}
	}
}

// Read reads what is stored of the entry.
func (r *Reader) Read(data []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(data)) > r.left {
		data = data[:r.left]
	}
	n, err := r.in.Read(data)
	r.left -= int64(n)
	if err == io.EOF && r.left > 0 {
		err = cut(err)
	}
	return n, err
}

func (r *Reader) take(header []byte, p *pending) (*Entry, error) {
	if err := checkSum(header); err != nil {
		return nil, err
	}
	kind := header[156]
	size, err := number(header[124:136], "size")
	if err != nil || size < 0 {
		return nil, firstOf(err, invalid("a size is %d", size))
	}
	switch kind {
	case 'x', 'L', 'K':
		if size > maxExtensionBytes {
			return nil, invalid("an extended header has %d bytes, over %d", size, maxExtensionBytes)
		}
		text := make([]byte, size+padding(size))
		if _, err := io.ReadFull(r.in, text); err != nil {
			return nil, cut(err)
		}
		p.any = true
		return nil, p.extend(kind, text[:size])
	case 'g', 'V': // about all that follows, or a tape's label
		if _, err := io.CopyN(io.Discard, r.in, size+padding(size)); err != nil {
			return nil, cut(err)
		}
		return nil, nil
	}
	return r.entry(header, kind, size, p)
}

// kinds are the type flags whose entries are taken, old and rare ones as what they mean.
var kinds = map[byte]byte{
	'0': File, 0: File, '7': File, 'S': File, '1': HardLink, '2': Symlink, '3': CharDevice, '4': BlockDevice, '5': Folder, '6': FIFO,
}

func (r *Reader) entry(header []byte, flag byte, size int64, p *pending) (*Entry, error) {
	kind, known := kinds[flag]
	if !known {
		return nil, invalid("an entry has the unknown type %q", flag)
	}
	e := &Entry{Kind: kind, Path: cString(header[0:100]), Target: cString(header[157:257]), Xattrs: p.xattrs}
	if prefix := cString(header[345:500]); prefix != "" && string(header[257:263]) == "ustar\x00" {
		e.Path = prefix + "/" + e.Path
	}
	fields := []struct {
		from, to int
		name     string
		value    *int64
	}{{108, 116, "uid", &e.UID}, {116, 124, "gid", &e.GID}, {136, 148, "mtime", &e.Seconds}}
	if kind == CharDevice || kind == BlockDevice {
		fields = append(fields, struct {
			from, to int
			name     string
			value    *int64
		}{329, 337, "major", &e.Major}, struct {
			from, to int
			name     string
			value    *int64
		}{337, 345, "minor", &e.Minor})
	}
	mode, err := number(header[100:108], "mode")
	if err != nil {
		return nil, err
	}
	e.Mode = uint32(mode) & 0o7777
	for _, field := range fields {
		if *field.value, err = number(header[field.from:field.to], field.name); err != nil {
			return nil, err
		}
	}
	if err := p.apply(e, &size); err != nil {
		return nil, err
	}
	if e.UID < 0 || e.UID > maxOwner || e.GID < 0 || e.GID > maxOwner || e.Major < 0 || e.Minor < 0 {
		return nil, invalid("%q has an owner or a device that is none", e.Path)
	}
	if flag == 0 && strings.HasSuffix(e.Path, "/") {
		e.Kind = Folder
		if size > 0 {
			return nil, invalid("the folder %q has content", e.Path)
		}
	}
	if e.Path == "" {
		return nil, invalid("an entry has no name")
	}
	if e.Kind != File {
		return e, nil
	}
	r.left, r.pad = size, padding(size)
	e.Size = size
	return e, r.sparse(e, header, flag, p)
}

// sparse finds out about holes, in each of the four ways that GNU tar has had to say it.
func (r *Reader) sparse(e *Entry, header []byte, flag byte, p *pending) error {
	var pairs []int64
	var err error
	realSize := p.records["GNU.sparse.size"]
	if text, sent := p.records["GNU.sparse.realsize"]; sent {
		realSize = text
	}
	version := p.records["GNU.sparse.major"] + "." + p.records["GNU.sparse.minor"]
	list, hasList := p.records["GNU.sparse.map"]
	switch {
	case flag == 'S':
		pairs, e.Size, err = r.oldMap(header)
	case version == "1.0":
		pairs, err = r.dataMap()
	case version != "." && version != "0.0" && version != "0.1", !hasList && len(p.sparsePairs) == 0 && version == ".":
		return nil // a file as it stands there
	case len(p.sparsePairs) > 0:
		pairs = p.sparsePairs
	case list != "":
		for _, text := range strings.Split(list, ",") {
			value, err := decimal(text, "GNU.sparse.map")
			if err != nil {
				return err
			}
			pairs = append(pairs, value)
		}
	}
	if err == nil && flag != 'S' {
		e.Size, err = decimal(realSize, "the size of a sparse file")
	}
	if err != nil {
		return err
	}
	if name := p.records["GNU.sparse.name"]; name != "" {
		e.Path = name
	}
	e.Extents, err = extentsOf(pairs, e.Size, r.left)
	return err
}

func extentsOf(pairs []int64, size, stored int64) ([]Extent, error) {
	if len(pairs)%2 != 0 {
		return nil, invalid("the map of a sparse file has an offset without a length")
	}
	extents := make([]Extent, 0, len(pairs)/2)
	var end, sum int64
	for i := 0; i < len(pairs); i += 2 {
		offset, length := pairs[i], pairs[i+1]
		if offset < end || length < 0 || length > size || offset > size-length {
			return nil, invalid("the map of a sparse file of %d bytes has %d bytes at %d, after %d", size, length, offset, end)
		}
		end = offset + length
		sum += length
		if length > 0 {
			extents = append(extents, Extent{offset, length})
		}
	}
	if sum != stored {
		return nil, invalid("a sparse file has %d bytes, and its map %d", stored, sum)
	}
	return extents, nil
}

// dataMap reads the map in front of the data: decimal numbers, a line each, padded.
func (r *Reader) dataMap() ([]int64, error) {
	var numbers []int64
	var line []byte
	for taken := 0; ; taken += block {
		if r.left < block || taken >= maxExtensionBytes {
			return nil, invalid("the map of a sparse file does not end within %d bytes", taken)
		}
		var piece [block]byte
		if _, err := io.ReadFull(r.in, piece[:]); err != nil {
			return nil, cut(err)
		}
		r.left -= block
		for _, each := range piece {
			if each != '\n' {
				if line = append(line, each); len(line) > 20 {
					return nil, invalid("the map of a sparse file is no list of numbers")
				}
				continue
			}
			value, err := decimal(string(line), "a number in the map of a sparse file")
			if err != nil {
				return nil, err
			}
			line = line[:0]
			numbers = append(numbers, value)
			if int64(len(numbers)-1) == 2*numbers[0] {
				return numbers[1:], nil
			}
		}
	}
}

// oldMap reads the pairs in the header of an old sparse file, and in the blocks that follow it.
func (r *Reader) oldMap(header []byte) (pairs []int64, size int64, err error) {
	if size, err = number(header[483:495], "the size of a sparse file"); err != nil {
		return nil, 0, err
	}
	from, count, more := header[386:], 4, header[482]
	for taken := 0; ; taken += block {
		for i := 0; i < count && from[i*24] != 0; i++ {
			for _, field := range [][]byte{from[i*24 : i*24+12], from[i*24+12 : i*24+24]} {
				value, err := number(field, "the map of a sparse file")
				if err != nil {
					return nil, 0, err
				}
				pairs = append(pairs, value)
			}
		}
		if more == 0 {
			return pairs, size, nil
		}
		if taken >= maxExtensionBytes {
			return nil, 0, invalid("the map of a sparse file has over %d bytes", maxExtensionBytes)
		}
		var piece [block]byte
		if _, err := io.ReadFull(r.in, piece[:]); err != nil {
			return nil, 0, cut(err)
		}
		from, count, more = piece[:], 21, piece[504]
	}
}

// extend takes an extended header, or a long name.
func (p *pending) extend(kind byte, text []byte) error {
	switch kind {
	case 'L':
		p.longPath = cString(text)
		return nil
	case 'K':
		p.longLink = cString(text)
		return nil
	}
	p.records, p.xattrs, p.sparsePairs = map[string]string{}, nil, nil
	for len(text) > 0 {
		space := bytes.IndexByte(text, ' ')
		if space <= 0 || space > 7 {
			return invalid("an extended header has a broken record")
		}
		length, err := strconv.Atoi(string(text[:space]))
		if err != nil || length <= space+1 || length > len(text) || text[length-1] != '\n' {
			return invalid("an extended header has a broken record")
		}
		key, value, found := strings.Cut(string(text[space+1:length-1]), "=")
		if !found || key == "" || strings.Contains(key, "\x00") {
			return invalid("an extended header has a broken record")
		}
		text = text[length:]
		switch {
		case strings.HasPrefix(key, xattrPrefix):
			if p.xattrs == nil {
				p.xattrs = map[string]string{}
			}
			p.xattrs[key[len(xattrPrefix):]] = value
		case key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes":
			number, err := decimal(value, key)
			if err != nil {
				return err
			}
			p.sparsePairs = append(p.sparsePairs, number)
		case (key == "path" || key == "linkpath" || key == "GNU.sparse.name") && strings.Contains(value, "\x00"):
			return invalid("a name holds a NUL")
		default:
			p.records[key] = value
		}
	}
	return nil
}

// apply lays what was gathered over a header.
func (p *pending) apply(e *Entry, size *int64) error {
	for _, name := range []string{p.records["path"], p.longPath} {
		if name != "" {
			e.Path = name
		}
	}
	for _, name := range []string{p.records["linkpath"], p.longLink} {
		if name != "" {
			e.Target = name
		}
	}
	for key, value := range map[string]*int64{"uid": &e.UID, "gid": &e.GID, "size": size} {
		text := p.records[key]
		if text == "" {
			continue
		}
		var err error
		if *value, err = decimal(text, key); err != nil {
			return err
		}
	}
	if text := p.records["mtime"]; text != "" {
		return parseTime(text, e)
	}
	return nil
}

func parseTime(text string, e *Entry) error {
	whole, fraction, _ := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || len(whole) > 16 {
		return invalid("mtime is no time: %.40q", text)
	}
	if len(fraction) > 9 {
		fraction = fraction[:9]
	}
	nanoseconds, err := strconv.ParseUint(fraction+strings.Repeat("0", 9-len(fraction)), 10, 32)
	if err != nil {
		return invalid("mtime is no time: %.40q", text)
	}
	e.Seconds, e.Nanoseconds = seconds, int64(nanoseconds)
	if strings.HasPrefix(whole, "-") && nanoseconds > 0 {
		e.Seconds, e.Nanoseconds = seconds-1, 1e9-int64(nanoseconds)
	}
	return nil
}

func cString(field []byte) string {
	if end := bytes.IndexByte(field, 0); end >= 0 {
		field = field[:end]
	}
	return string(field)
}

// number reads octal digits, or base 256 with the highest bit set (GNU).
func number(field []byte, name string) (int64, error) {
	if field[0]&0x80 != 0 {
		value := int64(field[0] & 0x3f)
		if field[0]&0x40 != 0 {
			value -= 0x40
		}
		for _, each := range field[1:] {
			if value > 1<<44 || value < -1<<44 {
				return 0, invalid("%s is too large", name)
			}
			value = value<<8 | int64(each)
		}
		return value, nil
	}
	text := strings.Trim(string(field), " \x00")
	text, _, _ = strings.Cut(text, "\x00") // old bytes may stand behind it
	if text == "" {
		return 0, nil
	}
	value, err := strconv.ParseUint(text, 8, 62)
	if err != nil {
		return 0, invalid("%s is no octal number: %q", name, text)
	}
	return int64(value), nil
}

func decimal(text, name string) (int64, error) {
	value, err := strconv.ParseUint(text, 10, 53)
	if err != nil {
		return 0, invalid("%s is no whole number: %.40q", name, text)
	}
	return int64(value), nil
}

// checkSum takes both sums there have been: of unsigned bytes, and of signed ones.
func checkSum(header []byte) error {
	told, err := number(header[148:156], "checksum")
	if err != nil {
		return err
	}
	var unsigned, signed int64
	for i, each := range header {
		if i >= 148 && i < 156 {
			each = ' '
		}
		unsigned += int64(each)
		signed += int64(int8(each))
	}
	if told != unsigned && told != signed {
		return invalid("a header's checksum is %d, and it says %d", unsigned, told)
	}
	return nil
}

func invalid(format string, args ...interface{}) error {
	return fmt.Errorf("%w: "+format, append([]interface{}{ErrInvalid}, args...)...)
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// cut names the end in the middle; a failure of the source stays what it is.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return invalid("it is cut short")
	}
	return err
}
