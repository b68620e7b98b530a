// Package appended finds the flags that a test has put behind the end of a copy of a program, where the kernel does not mind them. A
// program that is started by another, or in a jail without a shell, is told in this way what a script would tell it.
package appended

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// marker begins the last line of such a copy; the flags follow as an array of JSON.
const marker = "\n#stand-in "

// maxBytes is how far from the end the line may begin.
const maxBytes = 2048

// Line is what is appended to a copy of a program.
func Line(flags []string) ([]byte, error) {
	text, err := json.Marshal(flags)
	if err != nil {
		return nil, err
	}
	return append(append([]byte(marker), text...), '\n'), nil
}

// Flags are those behind the program of this process. Its name is asked where there is no /proc, as in a jail.
func Flags(name string) ([]string, error) {
	file, err := os.Open("/proc/self/exe")
	if err != nil {
		if file, err = os.Open(name); err != nil {
			return nil, fmt.Errorf("cannot look for flags behind %s: %w", name, err)
		}
	}
	defer file.Close() // it was only read
	return read(file)
}

func read(file *os.File) ([]string, error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	end := make([]byte, maxBytes)
	if size < maxBytes {
		end = end[:size]
	}
	if _, err := file.ReadAt(end, size-int64(len(end))); err != nil {
		return nil, err
	}
	at := bytes.LastIndex(end, []byte(marker))
	if at < 0 {
		return nil, nil
	}
	var flags []string
	if err := json.Unmarshal(end[at+len(marker):], &flags); err != nil {
		return nil, fmt.Errorf("the flags behind %s: %w", file.Name(), err)
	}
	return flags, nil
}
