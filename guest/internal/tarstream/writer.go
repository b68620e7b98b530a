package tarstream

import (
	"fmt"
	"io"
	"path"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxName      = 100
	maxOctal7    = 1<<21 - 1
	maxOctal11   = 1<<33 - 1
	maxMapPieces = 20000 // two numbers of at most 16 digits each: well below maxExtensionBytes
)

// Writer writes a stream.
type Writer struct {
	out  io.Writer
	left int64 // of the entry's content
	pad  int64
}

// NewWriter writes to out, which should be buffered.
func NewWriter(out io.Writer) *Writer { return &Writer{out: out} }

// Begin writes all that stands before an entry's content, of which the caller then writes as much as Stored says.
func (w *Writer) Begin(entry *Entry) error {
	if err := w.finish(); err != nil {
		return err
	}
	records := map[string]string{}
	for name, value := range entry.Xattrs {
		records[xattrPrefix+name] = value
	}
	name, stored, sparseMap := entry.Path, entry.Stored(), ""
	if entry.Kind == File && entry.Extents != nil {
		sparseMap = mapOf(entry)
		stored += int64(len(sparseMap))
		records["GNU.sparse.major"], records["GNU.sparse.minor"] = "1", "0"
		records["GNU.sparse.name"] = entry.Path
		records["GNU.sparse.realsize"] = strconv.FormatInt(entry.Size, 10)
		// For readers that know no sparse files, and would take this for one of them.
		name = path.Join(path.Dir(name), "GNUSparseFile.0", path.Base(name))
	}
	if needsRecord(name) {
		records["path"] = name
	}
	if needsRecord(entry.Target) {
		records["linkpath"] = entry.Target
	}
	if !utf8.ValidString(entry.Path) || !utf8.ValidString(entry.Target) {
		records["hdrcharset"] = "BINARY"
	}
	for key, owner := range map[string]int64{"uid": entry.UID, "gid": entry.GID} {
		if owner > maxOctal7 {
			records[key] = strconv.FormatInt(owner, 10)
		}
	}
	if stored > maxOctal11 {
		records["size"] = strconv.FormatInt(stored, 10)
	}
	if entry.Nanoseconds != 0 || entry.Seconds < 0 || entry.Seconds > maxOctal11 {
		records["mtime"] = timeText(entry.Seconds, entry.Nanoseconds)
	}
	var head []byte
	if len(records) > 0 {
		text := paxText(records)
		if len(text) > maxExtensionBytes {
			return fmt.Errorf("the attributes of %q have %d bytes, at most %d fit", entry.Path, len(text), maxExtensionBytes)
		}
		head = appendHeader(head, 'x', "PaxHeader", &Entry{Mode: 0o644}, int64(len(text)))
		head = append(head, text...)
		head = append(head, make([]byte, padding(int64(len(text))))...)
	}
	head = appendHeader(head, entry.Kind, name, entry, stored)
	head = append(head, sparseMap...)
	if _, err := w.out.Write(head); err != nil {
		return err
	}
	w.left, w.pad = entry.Stored(), padding(stored)
	return nil
}

// Write writes content of the entry that was begun.
func (w *Writer) Write(data []byte) (int, error) {
	if int64(len(data)) > w.left {
		return 0, fmt.Errorf("an entry has %d bytes more than it said", int64(len(data))-w.left)
	}
	n, err := w.out.Write(data)
	w.left -= int64(n)
	return n, err
}

// Close writes what ends a tar.
func (w *Writer) Close() error {
	if err := w.finish(); err != nil {
		return err
	}
	_, err := w.out.Write(make([]byte, 2*block))
	return err
}

func (w *Writer) finish() error {
	if w.left > 0 {
		return fmt.Errorf("an entry has %d bytes less than it said", w.left)
	}
	_, err := w.out.Write(make([]byte, w.pad))
	w.pad = 0
	return err
}

// needsRecord says that a name does not fit a header as it is, or would be read in an unknown encoding.
func needsRecord(name string) bool {
	if len(name) > maxName {
		return true
	}
	for i := 0; i < len(name); i++ {
		if name[i] >= 0x80 {
			return true
		}
	}
	return false
}

func timeText(seconds, nanoseconds int64) string {
	sign := ""
	if seconds < 0 {
		// The text is of the whole number: -1.25 is 750 million ns behind -2.
		sign = "-"
		seconds = -seconds
		if nanoseconds > 0 {
			seconds--
			nanoseconds = 1e9 - nanoseconds
		}
	}
	text := fmt.Sprintf("%s%d.%09d", sign, seconds, nanoseconds)
	return strings.TrimRight(strings.TrimRight(text, "0"), ".")
}

// paxText is the records in a fixed order, each with its length, which counts itself.
func paxText(records map[string]string) string {
	keys := make([]string, 0, len(records))
	for key := range records {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	var text strings.Builder
	for _, key := range keys {
		rest := " " + key + "=" + records[key] + "\n"
		length := len(rest) + 1
		for len(strconv.Itoa(length))+len(rest) != length {
			length = len(strconv.Itoa(length)) + len(rest)
		}
		text.WriteString(strconv.Itoa(length))
		text.WriteString(rest)
	}
	return text.String()
}

// mapOf stands in front of a sparse file's data, padded.
func mapOf(entry *Entry) string {
	var text strings.Builder
	extents := entry.Extents
	if end := len(extents); end == 0 || extents[end-1].Offset+extents[end-1].Length < entry.Size {
		extents = append(extents[:end:end], Extent{entry.Size, 0}) // as GNU tar does
	}
	fmt.Fprintf(&text, "%d\n", len(extents))
	for _, extent := range extents {
		fmt.Fprintf(&text, "%d\n%d\n", extent.Offset, extent.Length)
	}
	text.WriteString(strings.Repeat("\x00", int(padding(int64(text.Len())))))
	return text.String()
}

// Coalesce joins extents until there are few enough for a map: the smallest holes are stored as zeros.
func Coalesce(extents []Extent) []Extent {
	for gap := int64(4096); len(extents) > maxMapPieces; gap *= 2 {
		joined := extents[:1]
		for _, next := range extents[1:] {
			last := &joined[len(joined)-1]
			if next.Offset-(last.Offset+last.Length) <= gap {
				last.Length = next.Offset + next.Length - last.Offset
			} else {
				joined = append(joined, next)
			}
		}
		extents = joined
	}
	return extents
}

func appendHeader(buffer []byte, kind byte, name string, entry *Entry, size int64) []byte {
	var header [block]byte
	copy(header[0:100], name)
	putOctal(header[100:108], int64(entry.Mode))
	putOctal(header[108:116], least(entry.UID, maxOctal7))
	putOctal(header[116:124], least(entry.GID, maxOctal7))
	putOctal(header[124:136], least(size, maxOctal11))
	seconds := least(entry.Seconds, maxOctal11)
	if seconds < 0 {
		seconds = 0
	}
	putOctal(header[136:148], seconds)
	header[156] = kind
	copy(header[157:257], entry.Target)
	copy(header[257:265], "ustar\x0000")
	putOctal(header[329:337], least(entry.Major, maxOctal7))
	putOctal(header[337:345], least(entry.Minor, maxOctal7))
	copy(header[148:156], "        ")
	sum := int64(0)
	for _, each := range header {
		sum += int64(each)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(buffer, header[:]...)
}

func least(a, b int64) int64 {
	if a < b {
		return a
	}
	return b
}

func putOctal(field []byte, value int64) {
	text := strconv.FormatInt(value, 8)
	for i := 0; i < len(field)-1; i++ {
		field[i] = '0'
	}
	copy(field[len(field)-1-len(text):], text)
}
