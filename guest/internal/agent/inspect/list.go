package inspect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/wire"
)

const (
	// maxEntries is the bound of PROTOCOL.md for one `entries` message.
	maxEntries = 256
	// enoughBytes sends a message before its 256 entries are full. One entry has at most a link's target of 4 KiB, six
	// times longer as JSON escapes, so that this stays far below wire.MaxMessageBytes.
	enoughBytes = 128 << 10
)

// entries is the `entries` message with its files encoded already, since their size must be known while they are gathered.
type entries struct {
	Type  string            `json:"type"`
	Files []json.RawMessage `json:"files"`
}

// List sends a folder's entries in the file system's order, then `listed`.
func List(message wire.Message, out *wire.Writer) error {
	path := message.Text("path")
	// O_NONBLOCK: a FIFO in its place must not wait for a writer before O_DIRECTORY can refuse it.
	folder, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return failure.Of(err, "cannot list %s", path)
	}
	defer folder.Close() // read only: its error has nothing to tell
	batch := entries{Type: "entries"}
	batchBytes := 0
	count := int64(0)
	send := func() error {
		if len(batch.Files) == 0 {
			return nil
		}
		err := out.WriteMessage(batch)
		batch.Files, batchBytes = batch.Files[:0], 0
		return err
	}
	for {
		names, err := folder.Readdirnames(maxEntries)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return failure.Of(err, "cannot list %s after %d entries", path, count)
		}
		for _, name := range names {
			encoded, err := encodeEntry(path, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed since its name was read
			}
			if err != nil {
				return err
			}
			batch.Files = append(batch.Files, encoded)
			batchBytes += len(encoded)
			count++
			if len(batch.Files) == maxEntries || batchBytes > enoughBytes {
				if err := send(); err != nil {
					return err
				}
			}
		}
	}
	if err := send(); err != nil {
		return err
	}
	return out.WriteMessage(wire.Listed{Type: "listed", Count: count})
}

func encodeEntry(folder, name string) ([]byte, error) {
	path := folder + "/" + name
	info, err := os.Lstat(path)
	if err != nil {
		return nil, failure.Of(err, "cannot look at %s", path)
	}
	entry, err := describe(path, name, info)
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("cannot encode an entry: %w", err)
	}
	return encoded, nil
}
