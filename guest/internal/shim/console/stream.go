// Package console passes the output of a VM on to its log and to every client that watches, none of which can hold it up.
package console

import (
	"sync"

	"bandsox.dev/guest/internal/shim/boundedlog"
)

// Watcher receives the output.
type Watcher interface {
	// Seed hands over what was there before; it comes once, before the first Offer.
	Seed(earlier []byte)
	// Offer hands over new output without waiting; false when the watcher is full or gone, which ends its subscription.
	Offer(output []byte) bool
}

// Stream is the output of one VM.
type Stream struct {
	mu       sync.Mutex
	log      *boundedlog.Log
	watchers map[Watcher]struct{}
}

// NewStream keeps the output in log.
func NewStream(log *boundedlog.Log) *Stream {
	return &Stream{log: log, watchers: map[Watcher]struct{}{}}
}

// Write passes output on.
func (s *Stream) Write(output []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.Write(output)
	for watcher := range s.watchers {
		if !watcher.Offer(output) {
			delete(s.watchers, watcher)
		}
	}
}

// Watch seeds the watcher with the last tail bytes of the log and then offers it every byte that comes after them.
func (s *Stream) Watch(watcher Watcher, tail int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	earlier, err := s.log.Tail(tail)
	if err != nil {
		return err
	}
	watcher.Seed(earlier)
	s.watchers[watcher] = struct{}{}
	return nil
}

// Unwatch ends a subscription; ending it twice is harmless.
func (s *Stream) Unwatch(watcher Watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, watcher)
}
