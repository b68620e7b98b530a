package main

import (
	"bufio"
	"encoding/hex"
	"io"
	"math/rand"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"
)

type pump func(size int64, path string, in *bufio.Reader, out io.Writer) (string, error)

var pumps = map[string]pump{
	"receive plain": receivePlain, "receive file": receiveFile, "send plain": sendPlain, "send file": sendFile,
}

const noChecksum = "-"

// inBlocks hands over size bytes of src in blocks.
func inBlocks(src io.Reader, size int64, take func(block []byte) error) error {
	buf := make([]byte, blockBytes)
	for size > 0 {
		block := buf
		if size < blockBytes {
			block = buf[:size]
		}
		if _, err := io.ReadFull(src, block); err != nil {
			return err
		}
		if err := take(block); err != nil {
			return err
		}
		size -= int64(len(block))
	}
	return nil
}

func receivePlain(size int64, _ string, in *bufio.Reader, _ io.Writer) (string, error) {
	return noChecksum, inBlocks(in, size, func([]byte) error { return nil })
}

// receiveFile makes the file as durable as the agent does: a temporary name, synced, renamed, the folder synced.
func receiveFile(size int64, path string, in *bufio.Reader, _ io.Writer) (string, error) {
	temporary := path + ".part"
	file, err := os.Create(temporary)
	if err != nil {
		return "", err
	}
	sum := xxhash.New()
	err = inBlocks(in, size, func(block []byte) error {
		_, _ = sum.Write(block) // a hash cannot fail
		_, err := file.Write(block)
		return err
	})
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	return hex.EncodeToString(sum.Sum(nil)), err
}

func makeFile(size int64, path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewSource(1))
	err = inBlocks(random, size, func(block []byte) error {
		_, err := file.Write(block)
		return err
	})
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	defer folder.Close() // read only: its error has nothing to tell
	return folder.Sync()
}

func sendPlain(size int64, _ string, _ *bufio.Reader, out io.Writer) (string, error) {
	buf := make([]byte, blockBytes)
	for ; size > 0; size -= int64(len(buf)) {
		if size < blockBytes {
			buf = buf[:size]
		}
		if _, err := out.Write(buf); err != nil {
			return "", err
		}
	}
	return noChecksum, nil
}

func sendFile(size int64, path string, _ *bufio.Reader, out io.Writer) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close() // read only: its error has nothing to tell
	sum := xxhash.New()
	err = inBlocks(file, size, func(block []byte) error {
		_, _ = sum.Write(block) // a hash cannot fail
		_, err := out.Write(block)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}
