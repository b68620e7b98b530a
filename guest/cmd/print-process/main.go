// print-process prints as whom and how it was started, one "key=value" a line: the only program of a test image. It is never
// shipped.
package main

import (
	"fmt"
	"os"
	"sort"
)

func main() {
	groups, err := os.Getgroups()
	if err != nil {
		fmt.Fprintf(os.Stderr, "print-process: %v\n", err)
		os.Exit(1)
	}
	folder, err := os.Getwd()
	if err != nil {
		fmt.Fprintf(os.Stderr, "print-process: %v\n", err)
		os.Exit(1)
	}
	sort.Ints(groups)
	fmt.Printf("uid=%d\ngid=%d\ngroups=%d\ncwd=%s\ngreeting=%s\nargs=%q\n",
		os.Getuid(), os.Getgid(), groups, folder, os.Getenv("GREETING"), os.Args[1:])
}
