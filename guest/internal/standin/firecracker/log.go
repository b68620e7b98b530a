package firecracker

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// levels are the logger's, by how much they let through.
var levels = map[string]int{"off": 0, "error": 1, "warn": 2, "warning": 2, "info": 3, "debug": 4, "trace": 5}

// log writes lines in Firecracker's form: to stdout, in between the guest's console, until it is given a file.
type log struct {
	mutex      sync.Mutex
	instance   string
	out        *os.File
	level      int
	showLevel  bool
	showOrigin bool
}

func newLog(out *os.File) *log {
	return &log{instance: "anonymous-instance", out: out, level: levels["info"]}
}

func (l *log) update(config logger) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if config.LogPath != nil {
		file, err := openNonblock(*config.LogPath)
		if err != nil {
			return refuse("Failed to open target file: %s", osError(err))
		}
		l.out = file
	}
	if config.Level != nil {
		l.level = levels[strings.ToLower(*config.Level)]
	}
	if config.ShowLevel != nil {
		l.showLevel = *config.ShowLevel
	}
	if config.ShowLogOrigin != nil {
		l.showOrigin = *config.ShowLogOrigin
	}
	return nil
}

func (l *log) info(format string, args ...any)  { l.write("INFO", format, args...) }
func (l *log) error(format string, args ...any) { l.write("ERROR", format, args...) }

func (l *log) write(level, format string, args ...any) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if levels[strings.ToLower(level)] > l.level {
		return
	}
	origin := ""
	if l.showLevel {
		origin = ":" + level
	}
	if l.showOrigin {
		origin += ":stand-in:0"
	}
	// A log that takes no line loses it, as the real one does.
	when, text := time.Now().Format("2006-01-02T15:04:05.000000000"), fmt.Sprintf(format, args...)
	_, _ = fmt.Fprintf(l.out, "%s [%s:main%s] %s\n", when, l.instance, origin, text)
}

// openNonblock opens a file or FIFO that lines are put into. A file that is there is written over from its beginning.
func openNonblock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o666)
}
