// Package boundedlog keeps the newest bytes of an endless output in two files of bounded size, NAME and NAME.1.
package boundedlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
)

// Log is safe for use by many goroutines.
type Log struct {
	path     string
	maxBytes int64
	report   func(error)

	mu sync.Mutex
	// file is nil while it cannot be opened.
	file *os.File
	size int64
	// failing is set from the first write that failed to the next that did not, so that a full disk is reported once.
	failing bool
	// written counts what came since Open, in this file and in those before it.
	written int64
}

// Open continues the log at path. report hears of trouble later on: the log's own writer cannot wait for a repair.
func Open(path string, maxBytes int64, report func(error)) (*Log, error) {
	log := &Log{path: path, maxBytes: maxBytes, report: report}
	if err := log.open(); err != nil {
		return nil, err
	}
	return log, nil
}

// Write appends. It never fails: what cannot be written is dropped, since whoever waits for the log is a VM.
func (l *Log) Write(data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(data) > 0 {
		n, err := l.writeSome(data)
		l.size += int64(n)
		l.written += int64(n)
		data = data[n:]
		if err != nil {
			if !l.failing {
				l.report(fmt.Errorf("%s: dropping output until it can be written again: %w", l.path, err))
			}
			l.failing = true
			return
		}
		l.failing = false
	}
}

// Tail returns the last bytes written, at most limit, of earlier runs too.
func (l *Log) Tail(limit int64) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	newest, err := readTail(l.path, limit)
	if err != nil || int64(len(newest)) == limit {
		return newest, err
	}
	before, err := readTail(l.path+".1", limit-int64(len(newest)))
	return append(before, newest...), err
}

// TailSinceOpen is Tail without what was there before Open.
func (l *Log) TailSinceOpen(limit int64) ([]byte, error) {
	l.mu.Lock()
	written := l.written
	l.mu.Unlock()
	if written < limit {
		limit = written
	}
	return l.Tail(limit)
}

// Close ends the log; nothing may be written after it.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// writeSome writes what still fits into the current file, starting a new one when nothing does.
func (l *Log) writeSome(data []byte) (int, error) {
	if l.size >= l.maxBytes {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	if l.file == nil {
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	if room := l.maxBytes - l.size; int64(len(data)) > room {
		data = data[:room]
	}
	return l.file.Write(data)
}

func (l *Log) rotate() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if l.file != nil {
		if err := l.file.Close(); err != nil {
			l.report(fmt.Errorf("%s.1: %w", l.path, err))
		}
		l.file = nil
	}
	l.size = 0
	return nil
}

func (l *Log) open() error {
	// Never through a link: a confined VMM that could leave one here would have a root process write elsewhere.
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close() // err is the news; nothing was written
		return err
	}
	l.file, l.size = file, info.Size()
	return nil
}

func readTail(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close() // opened for reading: closing loses nothing
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	from := info.Size() - limit
	if from < 0 {
		from = 0
	}
	return io.ReadAll(io.NewSectionReader(file, from, info.Size()-from))
}
