package shim

import (
	"bandsox.dev/guest/internal/shim/boundedlog"
	"bandsox.dev/guest/internal/shim/fifo"
)

// tap takes what a program writes to a FIFO and keeps it in a log.
type tap struct {
	drain *fifo.Drain
	log   *boundedlog.Log
}

// openTap starts to drain a FIFO that exists into sink, which writes to log.
func openTap(path string, log *boundedlog.Log, sink func([]byte)) (*tap, error) {
	drain, err := fifo.StartDrain(path, sink)
	if err != nil {
		return nil, err
	}
	return &tap{drain: drain, log: log}, nil
}

// finish takes what is left, once: later calls find nothing to do.
func (t *tap) finish() error {
	if t.drain == nil {
		return nil
	}
	drain := t.drain
	t.drain = nil
	return drain.Finish()
}
