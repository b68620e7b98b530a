package main

import (
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// pageBytes is what a program that is started reads of its files at a time, where it reads here and there.
const pageBytes = 4096

// dropCaches makes the guest forget what it has read, so that the next read unpacks it again.
func dropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// readAll reads all files below a folder, in the order of their names.
func readAll(folder string) (time.Duration, error) {
	if err := dropCaches(); err != nil {
		return 0, err
	}
	block := make([]byte, blockBytes)
	started := time.Now()
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		return readFile(path, block)
	})
	return time.Since(started), err
}

func readFile(path string, block []byte) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() // read only: its error has nothing to tell
	for {
		if n, err := syscall.Read(int(file.Fd()), block); err != nil || n == 0 {
			return err
		}
	}
}

// readPages reads single pages of the files below a folder that have several, the same ones each time.
func readPages(folder string, count int) (time.Duration, error) {
	type largeFile struct {
		path  string
		pages int64
	}
	var files []largeFile
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Size() >= 2*blockBytes {
			files = append(files, largeFile{path, info.Size() / pageBytes})
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("no large files in %s", folder)
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	random := rand.New(rand.NewSource(1))
	page := make([]byte, pageBytes)
	started := time.Now()
	for ; count > 0; count-- {
		chosen := files[random.Intn(len(files))]
		if err := readPage(chosen.path, random.Int63n(chosen.pages)*pageBytes, page); err != nil {
			return 0, err
		}
	}
	return time.Since(started), nil
}

func readPage(path string, offset int64, page []byte) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() // read only: its error has nothing to tell
	_, err = file.ReadAt(page, offset)
	return err
}
