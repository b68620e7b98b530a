// Package pack has the tools that make and take the stream of a copy: PROTOCOL.md section 7, docs/files.md. They are commands, with
// a stream on their standard input or output. What they have done, or could not do, is one line of JSON on standard error.
//
//	pack [--include PATTERN]… [--exclude PATTERN]… [--as NAME] PATH
//	unpack [--checked] --to PATH
//	unpack --sweep --to PATH
//	layer [--devices] --image DEVICE DEVICE
//
// The last one packs the writable layer of another sandbox, a copy of whose disk this machine has beside the image's.
package pack

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"bandsox.dev/guest/internal/agent/failure"
)

// A copy must not take a small machine's memory.
const (
	collectAtPercent = 50
	memoryLimit      = 48 << 20
)

// maxSkipped bounds the names in a report; the others are counted.
const maxSkipped = 100

// Report is the line at the end of a copy.
type Report struct {
	Files   int64 `json:"files"`
	Folders int64 `json:"folders"`
	// Links are symbolic links, and hard ones after the first.
	Links int64 `json:"links"`
	// Others are FIFOs and device nodes.
	Others int64 `json:"others"`
	// Bytes is what was stored of all files.
	Bytes        int64     `json:"bytes"`
	StreamBytes  int64     `json:"streamBytes"`
	XXH64        string    `json:"xxh64"`
	Skipped      []Skipped `json:"skipped"`
	SkippedCount int64     `json:"skippedCount"`
}

// Skipped is something that is not in the copy, or not as it was.
type Skipped struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

func (r *Report) skip(path, reason string) {
	r.SkippedCount++
	if len(r.Skipped) < maxSkipped {
		r.Skipped = append(r.Skipped, Skipped{printable(path), reason})
	}
}

type arguments struct {
	include, exclude []string
	as, to, path     string
	image            string
	checked, sweep   bool
	devices          bool
}

// Main runs the tool that words begin with, and gives its exit status.
func Main(words []string, stdin io.Reader, stdout, stderr io.Writer) int {
	debug.SetGCPercent(collectAtPercent)
	debug.SetMemoryLimit(memoryLimit)
	report, err := run(words, stdin, stdout)
	var line interface{} = report
	if err != nil {
		known := failure.Of(err, "cannot copy")
		line = map[string]interface{}{"error": failure.ToMessage(known)}
	}
	text, encodeErr := json.Marshal(line)
	if encodeErr != nil {
		fmt.Fprintln(os.Stderr, encodeErr)
		return 1
	}
	if _, writeErr := stderr.Write(append(text, '\n')); writeErr != nil || err != nil {
		return 1
	}
	return 0
}

func run(words []string, stdin io.Reader, stdout io.Writer) (*Report, error) {
	a, err := parse(words)
	if err != nil {
		return nil, failure.New(failure.BadRequest, "cannot run %s: %v", words[0], err)
	}
	switch {
	case words[0] == "pack":
		return pack(a, stdout)
	case words[0] == "layer":
		return layer(a, stdout)
	case a.sweep:
		return sweepAt(a.to)
	}
	return unpack(a, stdin)
}

func parse(words []string) (a arguments, err error) {
	lists := map[string]*[]string{}
	texts := map[string]*string{}
	flags := map[string]*bool{}
	switch words[0] {
	case "layer":
		texts["--image"] = &a.image
		flags["--devices"] = &a.devices
	case "pack":
		lists["--include"], lists["--exclude"] = &a.include, &a.exclude
		texts["--as"] = &a.as
	default:
		texts["--to"] = &a.to
		flags["--checked"], flags["--sweep"] = &a.checked, &a.sweep
	}
	rest := words[1:]
	for len(rest) > 0 && strings.HasPrefix(rest[0], "--") {
		name := rest[0]
		rest = rest[1:]
		if flag, known := flags[name]; known {
			*flag = true
			continue
		}
		if len(rest) == 0 || lists[name] == nil && texts[name] == nil {
			return a, fmt.Errorf("the option %q is not known, or has no value", name)
		}
		if list, known := lists[name]; known {
			*list = append(*list, rest[0])
		} else {
			*texts[name] = rest[0]
		}
		rest = rest[1:]
	}
	if words[0] == "pack" || words[0] == "layer" {
		if len(rest) != 1 {
			return a, fmt.Errorf("there must be one path, there are %d", len(rest))
		}
		a.path = rest[0]
		rest = nil
	}
	path := a.path + a.to
	if len(rest) > 0 || !strings.HasPrefix(path, "/") {
		return a, fmt.Errorf("there must be one absolute path")
	}
	if words[0] == "layer" && !strings.HasPrefix(a.image, "/") {
		return a, fmt.Errorf("there must be an absolute --image")
	}
	return a, nil
}

// printable makes of a name what JSON can hold.
func printable(name string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(name, "\uFFFD"), "\x00", "?")
}
