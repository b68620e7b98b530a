// tree-digest prints a line of JSON for every path of a tree, with all that an image has to preserve of it, so that two
// trees are the same when their lines are. It is for tests, needs nothing beside itself, and is never shipped.
//
//	tree-digest -root DIR [-x] [-skip PATH]...
//
//	-root DIR   the tree; its own line is the path "."
//	-x          leaves mount points out, with all below, and names each on standard error
//	-skip PATH  leaves this path out, relative to the root, with all below
//
// Lines are sorted by the bytes of the path. Bytes that are not printable ASCII, and backslashes, are written \xhh.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

type options struct {
	root           string
	oneFileSystem  bool
	skipped        map[string]bool
	tellMountPoint func(name string)
}

// paths is a flag that may be given several times.
type paths map[string]bool

func (p paths) String() string { return "" }

func (p paths) Set(name string) error {
	p[path.Clean(strings.TrimLeft(name, "/"))] = true
	return nil
}

func main() {
	skipped := paths{}
	root := flag.String("root", "", "folder to describe")
	oneFileSystem := flag.Bool("x", false, "leave mount points out")
	flag.Var(skipped, "skip", "path to leave out, relative to the root; may be repeated")
	flag.Parse()
	if *root == "" || flag.NArg() != 0 {
		flag.Usage()
		os.Exit(2)
	}
	tell := func(name string) { fmt.Fprintf(os.Stderr, "left out, a mount point: %s\n", escape(name)) }
	err := printTree(os.Stdout, options{root: *root, oneFileSystem: *oneFileSystem, skipped: skipped, tellMountPoint: tell})
	if err != nil {
		fmt.Fprintf(os.Stderr, "tree-digest: %v\n", err)
		os.Exit(1)
	}
}

func printTree(to io.Writer, opts options) error {
	found, err := findNodes(opts)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(to)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	described := describer{root: opts.root, contents: map[inode]content{}}
	for _, each := range found {
		line, err := described.describe(each)
		if err != nil {
			return err
		}
		if err := lines.Encode(line); err != nil {
			return err
		}
	}
	return out.Flush()
}

// escape makes any bytes ASCII text, each in one way only.
func escape(bytes string) string {
	var text strings.Builder
	for i := 0; i < len(bytes); i++ {
		if c := bytes[i]; c < ' ' || c > '~' || c == '\\' {
			fmt.Fprintf(&text, `\x%02x`, c)
		} else {
			text.WriteByte(c)
		}
	}
	return text.String()
}
